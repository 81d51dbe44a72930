"""Triptychs: an original, its latent code and its reconstruction, as PNGs inside the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aecnn.evaluation.report.load import Example

MAX_SIDE_PX = 384  # twice the width on the page: sharp on dense screens, and a page that mails well
NUM_PROBABILITIES = 5


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
    side_px: int  # of the array, before any scaling for the page
    uri: str


@dataclass(frozen=True)
class Triptych:
    """One image as the report shows it."""

    image: str
    findings: tuple[str, ...]
    panels: tuple[Panel, ...]
    bars: tuple[Bar, ...]  # the most probable findings
    psnr_db: float | None  # None for a perfect copy


def triptychs(examples: Sequence[Example]) -> list[Triptych]:
    """Gives each example's three pictures and its most probable findings."""
    return [_triptych(example) for example in examples]


def _triptych(example: Example) -> Triptych:
    ranked = sorted(example.probabilities.items(), key=lambda item: (-item[1], item[0]))
    pictures = {"original": example.original, "latent": example.latent, "reconstruction": example.reconstruction}
    return Triptych(
        image=example.image,
        findings=example.findings,
        panels=tuple(Panel(caption, len(pixels), _png_uri(pixels)) for caption, pixels in pictures.items()),
        bars=tuple(Bar(name, value, name in example.findings) for name, value in ranked[:NUM_PROBABILITIES]),
        psnr_db=_psnr_db(example.original, example.reconstruction),
    )


def _psnr_db(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float | None:
    mse = np.square((original.astype(np.float64) - reconstruction) / 255.0).mean()
    return float(-10.0 * np.log10(mse)) if mse > 0 else None


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    if max(picture.size) > MAX_SIDE_PX:
        picture = picture.resize((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
