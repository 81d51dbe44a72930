"""One latent's 8-bit values as few bytes, without loss: a lossless WebP of one channel's values.

WebP was chosen by measurement among what the dependencies bring (`benchmarks/results/compression.md`): smaller than
PNG, zlib and LZMA, no larger than JPEG 2000, and unpacked in a millisecond. The payload is a WebP file as any viewer
opens it.

Before Pillow sees a payload its first bytes must promise exactly the size that is expected, so that a hostile one can
neither ask for more memory nor bring another kind of content (animation, metadata, lossy pixels).
"""

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image, features
from PIL.WebPImagePlugin import WebPImageFile

from aecnn.errors import AecnnError

_EFFORT = {"method": 4, "quality": 75}  # the last step up is 5 % smaller and takes 60 times as long
_RIFF = struct.Struct("<4sI4s4sIBI")  # RIFF, size, WEBP, VP8L, size, signature, dimensions (RFC 9649, 3.4)
_SIGNATURE = 0x2F
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def max_packed_bytes(size_px: int) -> int:
    """Gives the most bytes that a packed square of this side may take; noise takes about one a value."""
    return 2 * size_px**2 + 1024


def require_packer() -> None:
    """Refuses a Pillow that was built without WebP.

    Raises:
        AecnnError: It was.
    """
    if not features.check("webp"):
        raise AecnnError("this Pillow was built without WebP, which packs the latents: install Pillow's own wheel")


def pack(values: npt.NDArray[np.uint8]) -> bytes:
    """Gives a square of values [L, L] as bytes, from which `unpack` gives the same values."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "WEBP", lossless=True, **_EFFORT)
    return buffer.getvalue()


def unpack(packed: bytes, *, size_px: int) -> npt.NDArray[np.uint8]:
    """Gives the values [L, L] that were packed.

    Args:
        packed: What `pack` gave.
        size_px: Side L, known from elsewhere.

    Raises:
        ValueError: It is no such square; the text says why and names no file.
    """
    _check_promise(packed, size_px=size_px)
    try:
        picture = WebPImageFile(io.BytesIO(packed))
        pixels = np.asarray(picture.convert("RGB"))  # [L, L, 3]
    except _DAMAGE as error:
        raise ValueError(f"its WebP cannot be decoded ({error})") from error
    if pixels.shape != (size_px, size_px, 3):
        raise ValueError(f"its WebP has {pixels.shape[1]} × {pixels.shape[0]} values, expected {size_px} × {size_px}")
    if (pixels != pixels[..., :1]).any():
        raise ValueError("its WebP has colours, and a latent has none")
    return np.ascontiguousarray(pixels[..., 0])


def _check_promise(packed: bytes, *, size_px: int) -> None:
    if len(packed) < _RIFF.size:
        raise ValueError(f"it has {len(packed)} bytes, too few for a WebP")
    riff, file_bytes, webp, kind, chunk_bytes, signature, bits = _RIFF.unpack_from(packed)
    if (riff, webp, kind, signature) != (b"RIFF", b"WEBP", b"VP8L", _SIGNATURE):
        raise ValueError(f"it is no lossless WebP (starts with {packed[:16]!r})")
    if file_bytes + 8 != len(packed) or chunk_bytes + chunk_bytes % 2 + 20 != len(packed):
        raise ValueError(f"its WebP says that it has {file_bytes + 8} bytes, and it has {len(packed)}")
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if (width, height) != (size_px, size_px):
        raise ValueError(f"its WebP says {width} × {height} values, expected {size_px} × {size_px}")
