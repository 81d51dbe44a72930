"""Triptychs: an original, its latent code and its reconstruction, as PNGs in the page; and where the model looked."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from aecnn.evaluation.report.load import Example

MAX_SIDE_PX = 384  # twice the width on the page: sharp on dense screens, and a page that mails well
NUM_PROBABILITIES = 5
NUM_COLOURS = 128
OPACITY = 0.65  # of the hottest place on the radiograph


@dataclass(frozen=True)
class Bar:
    """One predicted probability."""

    finding: str
    probability: float
    is_present: bool  # in the annotations


@dataclass(frozen=True)
class Panel:
    """One picture of a triptych."""

    caption: str
    remark: str
    uri: str


@dataclass(frozen=True)
class Triptych:
    """One image as the report shows it."""

    image: str
    findings: tuple[str, ...]
    panels: tuple[Panel, ...]
    bars: tuple[Bar, ...]  # the most probable findings
    is_explained: bool  # its last picture shows where the classifier looked


def triptychs(examples: Sequence[Example]) -> list[Triptych]:
    """Gives each example's three pictures and its most probable findings."""
    return [_triptych(example) for example in examples]


def _triptych(example: Example) -> Triptych:
    ranked = sorted(example.probabilities.items(), key=lambda item: (-item[1], item[0]))
    psnr_db = _psnr_db(example.original, example.reconstruction)
    panels = [
        _panel("original", example.original),
        _panel("latent", example.latent),
        _panel("reconstruction", example.reconstruction, None if psnr_db is None else f"{psnr_db:.1f} dB"),
    ]
    if example.heatmap is not None:
        overlay = overlaid(example.original, example.heatmap)
        panels.append(_panel(f"Grad-CAM, {example.explained}" if example.explained else "Grad-CAM", overlay, ""))
    return Triptych(
        image=example.image,
        findings=example.findings,
        panels=tuple(panels),
        bars=tuple(Bar(name, value, name in example.findings) for name, value in ranked[:NUM_PROBABILITIES]),
        is_explained=example.heatmap is not None,
    )


def overlaid(original: NDArray[np.uint8], heatmap: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gives a radiograph [S, S] with the heatmap [S, S] in colour on it, [S, S, 3]: no heat leaves it as it is."""
    heat = heatmap.astype(np.float64) / 255.0
    colour = colormaps["inferno"](heat)[..., :3]
    opacity = OPACITY * heat[..., None]
    mixed = (1.0 - opacity) * original[..., None] / 255.0 + opacity * colour
    overlay: NDArray[np.uint8] = (255.0 * mixed).round().astype(np.uint8)
    return overlay


def _panel(caption: str, pixels: NDArray[np.uint8], remark: str | None = None) -> Panel:
    return Panel(caption, f"{len(pixels)} px" if remark is None else remark, _png_uri(pixels))


def _psnr_db(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float | None:
    mse = np.square((original.astype(np.float64) - reconstruction) / 255.0).mean()
    return float(-10.0 * np.log10(mse)) if mse > 0 else None


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    if max(picture.size) > MAX_SIDE_PX:
        picture = picture.resize((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    if picture.mode == "RGB":
        picture = picture.quantize(NUM_COLOURS)  # a third of the bytes, and the eye does not see it
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
