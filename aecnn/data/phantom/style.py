"""The scanner's hand: from attenuation to the 8-bit picture a hospital's archive holds.

Each hospital has one style (contrast curve, sharpness, noise, collimation, side marker); each exposure varies a little
around it. Noise is drawn on a lattice of fixed size and averaged down, so a smaller image is a less noisy one.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from aecnn.data.phantom.anatomy import View
from aecnn.data.phantom.canvas import Canvas, FloatArray, Pose, Stroke, resized

NOISE_LATTICE_PX = 512
WHITE_AT = 1.15  # attenuation shown as white


@dataclass(frozen=True)
class ScannerStyle:
    """How one hospital's pictures look.

    Attributes:
        slope: Steepness of the contrast curve.
        centre: Attenuation shown as middle grey.
        gamma: Of the display, above 1 darkens.
        floor: Grey of open air, in [0, 1].
        sharpening: Strength of the edge enhancement.
        blur: Standard deviation of the unsharpness, in body units.
        noise: Standard deviation on a lattice of 512 px, in display units.
        heel: Brightness gradient across the detector.
        collimation: Typical width of the shutters' shadow, in body units.
        marker_at: Corner (u, v) of the side marker.
        marker_size: Its height.
    """

    slope: float
    centre: float
    gamma: float
    floor: float
    sharpening: float
    blur: float
    noise: float
    heel: float
    collimation: float
    marker_at: tuple[float, float]
    marker_size: float


_ARCHETYPES = (
    # a digital room: crisp, wide grey scale
    ScannerStyle(4.2, 0.56, 1.00, 0.02, 0.45, 0.000, 0.030, 0.00, 0.00, (0.80, -0.86), 0.10),
    # storage phosphor on the wards: soft and flat
    ScannerStyle(3.4, 0.60, 0.85, 0.10, 0.00, 0.007, 0.045, 0.05, 0.06, (0.82, -0.62), 0.08),
    # digitised film: hard, dark, grainy
    ScannerStyle(6.0, 0.62, 1.15, 0.00, 0.15, 0.003, 0.065, -0.04, 0.03, (-0.86, -0.80), 0.12),
)


def scanner_style(hospital: int, rng: np.random.Generator) -> ScannerStyle:
    """The style of hospital 0, 1, …: the first three are archetypes, the others lie between and around them."""
    if hospital < len(_ARCHETYPES):
        return _ARCHETYPES[hospital]
    near = _ARCHETYPES[int(rng.integers(len(_ARCHETYPES)))]
    return replace(
        near,
        slope=float(rng.uniform(3.6, 7.0)),
        centre=float(rng.uniform(0.48, 0.60)),
        gamma=float(rng.uniform(0.8, 1.3)),
        floor=float(rng.uniform(0.0, 0.10)),
        sharpening=float(rng.uniform(0.0, 0.6)),
        noise=float(rng.uniform(0.04, 0.11)),
        heel=float(rng.uniform(-0.05, 0.05)),
        marker_at=(float(rng.choice([-0.84, 0.84])), float(rng.uniform(-0.88, -0.6))),
    )


def expose(attenuation: FloatArray, style: ScannerStyle, rng: np.random.Generator, *, view: View) -> NDArray[np.uint8]:
    """Takes the picture.

    Args:
        attenuation: What the rays met, [S, S].
        style: The hospital's.
        rng: Of this exposure; what it draws does not depend on S.
        view: Some ward pictures (AP) show the cables of a monitor.

    Returns:
        The radiograph, [S, S] of 8-bit grey, bright where attenuation is high.
    """
    detector = Canvas(attenuation.shape[0], Pose())
    exposure = float(rng.normal(0.0, 0.018))
    contrast = float(np.exp(rng.normal(0.0, 0.07)))
    overlay = detector.strokes(_overlay(style, rng, view=view))
    shutters = _shutters(detector, style, rng)
    varied = replace(style, centre=style.centre + exposure, slope=style.slope * contrast)
    display = display_of(attenuation + np.float32(style.heel) * detector.u, varied)
    display += np.float32(style.noise) * _noise(detector.size_px, rng) * (0.35 + 0.65 * display)
    display = np.maximum(display * shutters, np.float32(0.92) * overlay)
    return _as_bytes(display)


def display_of(attenuation: FloatArray, style: ScannerStyle) -> FloatArray:
    """The noise-free display [S, S] in [0, 1]: contrast curve, sharpness, base grey."""
    curve = 1.0 / (1.0 + np.exp(np.float32(-style.slope) * (attenuation - np.float32(style.centre))))
    low, high = _sigmoid(-style.slope * style.centre), _sigmoid(style.slope * (WHITE_AT - style.centre))
    display = np.clip((curve - np.float32(low)) / np.float32(high - low), 0.0, 1.0) ** np.float32(style.gamma)
    return np.float32(style.floor) + np.float32(1.0 - style.floor) * _sharpness(display, style)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _sharpness(display: FloatArray, style: ScannerStyle) -> FloatArray:
    half = display.shape[0] / 2.0
    if style.sharpening:
        display = np.clip(
            display + np.float32(style.sharpening) * (display - _blurred(display, 0.035 * half)), 0.0, 1.0
        )
    return _blurred(display, style.blur * half) if style.blur else display


def _blurred(display: FloatArray, radius_px: float) -> FloatArray:
    picture = Image.fromarray(_as_bytes(display))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius_px)), dtype=np.float32) * np.float32(1 / 255)


def _as_bytes(display: FloatArray) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = (np.clip(display, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)
    return rounded


def _noise(size_px: int, rng: np.random.Generator) -> FloatArray:
    """White noise of unit variance on the lattice, brought to [S, S] as a detector's binning would."""
    lattice = rng.standard_normal((NOISE_LATTICE_PX, NOISE_LATTICE_PX), dtype=np.float32)
    if size_px < NOISE_LATTICE_PX and NOISE_LATTICE_PX % size_px == 0:
        block = NOISE_LATTICE_PX // size_px
        binned: FloatArray = lattice.reshape(size_px, block, size_px, block).mean(axis=(1, 3), dtype=np.float32)
        return binned
    return lattice if size_px == NOISE_LATTICE_PX else resized(lattice, size_px)


def _shutters(detector: Canvas, style: ScannerStyle, rng: np.random.Generator) -> FloatArray:
    """1 in the field, nearly 0 in the shadow of the collimator."""
    left, right, top, bottom = (style.collimation * abs(rng.normal(0.0, 1.0, size=4))).tolist()
    if not style.collimation:
        return np.ones_like(detector.u)
    field = detector.step(detector.u + np.float32(1.0 - left), 0.008) * detector.step(1.0 - right - detector.u, 0.008)
    field *= detector.step(detector.v + np.float32(1.0 - top), 0.008) * detector.step(1.0 - bottom - detector.v, 0.008)
    return 0.04 + 0.96 * field


def _overlay(style: ScannerStyle, rng: np.random.Generator, *, view: View) -> list[Stroke]:
    """The side marker, and on some ward pictures the cables of a heart monitor."""
    (u, v), size = style.marker_at, style.marker_size
    u, v = u + float(rng.normal(0.0, 0.02)), v + float(rng.normal(0.0, 0.03))
    letter = [(u, v, u, v + size), (u, v + size, u + 0.6 * size, v + size)]  # L: the patient's left
    if u < 0:  # R: the patient's right
        bow, leg = v + 0.5 * size, u + 0.55 * size
        letter = [(u, v, u, v + size), (u, v, leg, v), (leg, v, leg, bow), (leg, bow, u, bow), (u, bow, leg, v + size)]
    strokes: list[Stroke] = [(*ends, 0.22 * size, 1.0) for ends in letter]
    has_cables = rng.uniform() < 0.45
    corners = rng.uniform((-0.7, -0.6, -0.5, 0.2), (-0.3, -0.2, 0.5, 0.6), size=(3, 4))
    if view == "AP" and has_cables:
        for u0, v0, u1, v1 in corners.tolist():
            middle = ((u0 + u1) / 2 + 0.1, (v0 + v1) / 2 + 0.08)
            strokes += [(u0, v0, *middle, 0.010, 0.8), (*middle, u1, v1, 0.010, 0.8)]
            strokes.append((u0 - 0.012, v0, u0 + 0.012, v0, 0.024, 0.9))
    return strokes
