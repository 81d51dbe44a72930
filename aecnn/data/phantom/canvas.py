"""Drawing in body coordinates: soft shapes, lines and clouds that look the same at any image size.

Body coordinates: u to the right of the image (the patient's left), v downwards, the detector spans [-1, 1] in both when
the patient stands straight at its centre. Every length is in these units. Shapes: S image side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatArray = NDArray[np.floating[Any]]  # float32 throughout; numpy's stubs cannot follow it through arithmetic
Stroke = tuple[float, float, float, float, float, float]  # u0, v0, u1, v1, width, brightness in [0, 1]

LINE_BLUR = 0.003  # standard deviation, where averaging does not smooth the lines already
LINE_CANVAS_PX = 512  # lines are drawn about this fine, then averaged down,
MAX_LINE_FACTOR = 4  # but not finer than this many pixels a pixel


@dataclass(frozen=True)
class Pose:
    """How the patient stands before the detector."""

    rotation_rad: float = 0.0
    zoom: float = 1.0
    shift_u: float = 0.0
    shift_v: float = 0.0


class Canvas:
    """The pixel grid of one radiograph in body coordinates.

    Args:
        size_px: Image side S in pixels.
        pose: Where the detector sees the body.
    """

    def __init__(self, size_px: int, pose: Pose) -> None:
        self.size_px = size_px
        self.pose = pose
        self.pixel = 2.0 / size_px / pose.zoom
        grid = ((np.arange(size_px, dtype=np.float32) + 0.5) * (2.0 / size_px) - 1.0).astype(np.float32)
        cos, sin = np.cos(pose.rotation_rad) / pose.zoom, np.sin(pose.rotation_rad) / pose.zoom
        across, down = (grid - np.float32(pose.shift_u))[None, :], (grid - np.float32(pose.shift_v))[:, None]
        self.u: FloatArray = (np.float32(cos) * across + np.float32(sin) * down).astype(np.float32)  # [S, S]
        self.v: FloatArray = (np.float32(cos) * down - np.float32(sin) * across).astype(np.float32)  # [S, S]

    def step(self, distance: FloatArray, softness: float) -> FloatArray:
        """A smooth 0 → 1 over ± ``softness`` around distance 0, never sharper than a pixel."""
        width = max(softness, 0.75 * self.pixel)
        x: FloatArray = np.clip(distance * np.float32(0.5 / width) + np.float32(0.5), 0.0, 1.0)
        return x * x * (3.0 - 2.0 * x)

    def ellipse(self, u: float, v: float, radius_u: float, radius_v: float, *, tilt_rad: float = 0.0) -> FloatArray:
        """Squared elliptical distance [S, S]: 0 at the centre, 1 on the outline."""
        du, dv = self.u - np.float32(u), self.v - np.float32(v)
        if tilt_rad:
            cos, sin = np.float32(np.cos(tilt_rad)), np.float32(np.sin(tilt_rad))
            du, dv = cos * du + sin * dv, cos * dv - sin * du
        return (du * np.float32(1 / radius_u)) ** 2 + (dv * np.float32(1 / radius_v)) ** 2

    def ball(self, u: float, v: float, radius_u: float, radius_v: float, *, tilt_rad: float = 0.0) -> FloatArray:
        """Path length through an ellipsoid [S, S]: 1 at the centre, 0 outside."""
        inside: FloatArray = np.maximum(1.0 - self.ellipse(u, v, radius_u, radius_v, tilt_rad=tilt_rad), 0.0)
        return np.sqrt(inside)

    def blob(self, u: float, v: float, radius_u: float, radius_v: float, *, tilt_rad: float = 0.0) -> FloatArray:
        """A cloud without an edge [S, S]: 1 at the centre, 0.37 at the radius."""
        return np.exp(-self.ellipse(u, v, radius_u, radius_v, tilt_rad=tilt_rad))

    def strokes(self, strokes: Sequence[Stroke]) -> FloatArray:
        """Straight tapering lines [S, S] in [0, 1]; where lines cross, the later one shows."""
        factor = min(MAX_LINE_FACTOR, max(1, -(-LINE_CANVAS_PX // self.size_px)))
        side = self.size_px * factor
        picture = Image.new("L", (side, side))
        draw = ImageDraw.Draw(picture)
        half, zoom = side / 2, self.pose.zoom
        cos, sin = float(np.cos(self.pose.rotation_rad)) * zoom, float(np.sin(self.pose.rotation_rad)) * zoom
        left, top = 1 + self.pose.shift_u, 1 + self.pose.shift_v
        for u0, v0, u1, v1, width, brightness in strokes:
            ends = [
                ((cos * u0 - sin * v0 + left) * half, (cos * v0 + sin * u0 + top) * half),
                ((cos * u1 - sin * v1 + left) * half, (cos * v1 + sin * u1 + top) * half),
            ]
            thickness = width * zoom * half
            fill = round(255 * brightness * min(1.0, thickness))
            draw.line(ends, fill=fill, width=max(1, round(thickness)))
        picture = picture.reduce(factor) if factor > 1 else picture.filter(ImageFilter.GaussianBlur(LINE_BLUR * half))
        return np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)

    def clouds(self, rng: np.random.Generator, grain: float, *, octaves: int = 2) -> FloatArray:
        """Smooth noise [S, S] of about unit variance with lumps of ``grain`` body units, halving each octave."""
        total = np.zeros((self.size_px, self.size_px), dtype=np.float32)
        for octave in range(octaves):
            cells = max(3, round(2.0 / grain * 2**octave))
            lattice = rng.standard_normal((cells, cells), dtype=np.float32)
            total += np.float32(1.4 * 0.6**octave) * resized(lattice, self.size_px)
        return total


def resized(field: FloatArray, size_px: int) -> FloatArray:
    """A float image brought to [size_px, size_px], averaged where it shrinks."""
    picture = Image.fromarray(field)
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
