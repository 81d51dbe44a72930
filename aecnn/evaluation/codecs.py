"""What other ways make of a radiograph: JPEG, JPEG 2000 and WebP at a wanted size, and a fourth of the pixels a side.

Sizes are those of whole files, headers included, as ours are. Each codec works on 8-bit grey pictures [S, S] with
Pillow's settings named below; its quality is searched for, since no codec takes a size.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from aecnn.compression.packing import pack
from aecnn.config import DOWNSCALE

Grey = npt.NDArray[np.uint8]

SMALLEST_RATE, LARGEST_RATE = 1.0, 2000.0  # JPEG 2000: times smaller than 8 bits a pixel
RATE_STEPS = 9  # halvings of that range, on a logarithmic scale: to within 1.5 %


@dataclass(frozen=True)
class Codec:
    """A lossy format with a quality from 0 (smallest) to `num_steps` (largest) that its size grows with."""

    name: str
    feature: str  # Pillow's name of what it needs
    num_steps: int
    encode: Callable[[Grey, int], bytes]
    curve: tuple[int, ...]  # qualities that a curve is drawn through


@dataclass(frozen=True)
class Coded:
    """One picture as a codec left it."""

    num_bytes: int
    grey: Grey  # [S, S]


def _jpeg(grey: Grey, quality: int) -> bytes:
    return _saved(grey, "JPEG", quality=1 + quality, optimize=True)


def _webp(grey: Grey, quality: int) -> bytes:
    return _saved(grey, "WEBP", quality=quality, method=4)


def _jpeg_2000(grey: Grey, quality: int) -> bytes:
    rate = LARGEST_RATE * (SMALLEST_RATE / LARGEST_RATE) ** (quality / 2**RATE_STEPS)
    return _saved(grey, "JPEG2000", quality_mode="rates", quality_layers=[rate], irreversible=True, no_jp2=True)


CODECS = (
    Codec("JPEG", "jpg", 94, _jpeg, (2, 8, 19, 39, 59, 74, 84)),
    Codec("JPEG 2000", "jpg_2000", 2**RATE_STEPS, _jpeg_2000, (140, 174, 217, 263, 295, 345)),
    Codec("WebP", "webp", 100, _webp, (0, 10, 30, 50, 70, 85, 92)),
)
SCALINGS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def known_codecs() -> list[Codec]:
    """Gives the codecs that this Pillow was built with."""
    return [codec for codec in CODECS if features.check(codec.feature)]


def at_size(codec: Codec, grey: Grey, num_bytes: int) -> Coded:
    """Gives a picture coded with the quality whose file is nearest to a size, in a handful of trials."""
    encode = cache(lambda quality: codec.encode(grey, quality))
    low, high = 0, codec.num_steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(encode(middle)) <= num_bytes else (low, middle)
    nearest = min((low, high), key=lambda quality: abs(len(encode(quality)) - num_bytes))
    return _decoded(encode(nearest))


def at_quality(codec: Codec, grey: Grey, quality: int) -> Coded:
    """Gives a picture coded with one quality."""
    return _decoded(codec.encode(grey, quality))


def scaled(grey: Grey, resampling: Image.Resampling) -> Coded:
    """Gives a picture scaled down by the mean of 4 × 4 pixels, packed as latents are, and scaled up again.

    Args:
        grey: [S, S], S divisible by 4: the small picture has as many values as a latent.
        resampling: How it is scaled up.
    """
    picture = Image.fromarray(grey)
    small = picture.reduce(DOWNSCALE)
    return Coded(len(pack(np.asarray(small))), np.asarray(small.resize(picture.size, resampling)))


def _saved(grey: Grey, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, kind, **options)
    return buffer.getvalue()


def _decoded(content: bytes) -> Coded:
    with Image.open(io.BytesIO(content)) as picture:
        return Coded(len(content), np.asarray(picture.convert("L")))
