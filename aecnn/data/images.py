"""Radiograph files as square 8-bit arrays: what is accepted, what is refused, and how they are scaled.

Accepted are PNG and JPEG files of up to `MAX_SIDE_PX` a side:

- grey (1, 2, 4 and 8 bit), grey with alpha, palette, RGB and RGBA. Alpha is ignored; colours become luminance, which
  leaves equal channels, as some ChestX-ray14 files have them, exactly as they are;
- 16-bit grey, of which the upper eight bits are kept (``value >> 8``). Files that use only the lower part of the
  16 bits come out dark: rescale them to the full range when exporting.

Pillow does the decoding. Its own guard against huge images is a global that warns, and warnings cannot be caught safely
in threads. So the files are opened by their format's class, which leaves that guard to us.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from aecnn.errors import ImageError

MAX_SIDE_PX = 8192  # the largest detectors give about 5,000; a square of this side takes 64 MiB
MAX_FILE_BYTES = 256 * 2**20

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_MAGIC = b"\xff\xd8\xff"
_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # older Pillow opens 16-bit grey as "I"
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode_radiograph(path: Path, *, size_px: int) -> npt.NDArray[np.uint8]:
    """Gives a radiograph as a square of the wanted size.

    A picture that is not square gets black borders on its two shorter sides, so that proportions stay. Then it is
    scaled: down by the mean over the area of each new pixel (a box filter, exact where the sides divide), up
    bilinearly.

    Args:
        path: A PNG or JPEG file.
        size_px: Side of the result.

    Returns:
        [size_px, size_px] grey values from 0 to 255.

    Raises:
        ImageError: The file is missing, damaged, cut short, too large, or not a grey picture. One sentence with its
            name.
    """
    grey = _square(_grey(_load(path, content=_read(path))))
    if grey.width != size_px:
        scaling = Image.Resampling.BOX if grey.width > size_px else Image.Resampling.BILINEAR
        grey = grey.resize((size_px, size_px), scaling)
    return np.array(grey, dtype=np.uint8)  # [size_px, size_px]


def verify_radiograph(path: Path) -> None:
    """Checks a file without decoding its pixels: format, size, mode and, in a PNG, the checksum of every part.

    Raises:
        ImageError: As `decode_radiograph`, except for damage that only decoding shows.
    """
    _check_mode(_open(path, content=_read(path)), path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not content:
        raise ImageError(f"{path}: is empty: fetch the file again")
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"{path}: is larger than {MAX_FILE_BYTES // 2**20} MiB, which no radiograph here may be")
    return content


def _open(path: Path, *, content: bytes) -> Image.Image:
    """The picture with its header read and its size checked, and not yet decoded."""
    try:
        if content.startswith(_PNG_MAGIC):
            if content.rfind(_PNG_END) < 0:
                raise EOFError("the end is missing")
            PngImageFile(io.BytesIO(content)).verify()  # leaves the object unusable
            image: Image.Image = PngImageFile(io.BytesIO(content))
        elif content.startswith(_JPEG_MAGIC):
            image = JpegImageFile(io.BytesIO(content))
        else:
            raise ImageError(f"{path}: is neither PNG nor JPEG (starts with {content[:8]!r}): export it as PNG")
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if max(image.size) > MAX_SIDE_PX or min(image.size) < 1:
        size = f"{image.width} × {image.height}"
        raise ImageError(f"{path}: has {size} pixels, accepted are up to {MAX_SIDE_PX} a side: scale it down")
    return image


def _load(path: Path, *, content: bytes) -> Image.Image:
    image = _open(path, content=content)
    _check_mode(image, path)
    try:
        image.load()
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return image


def _check_mode(image: Image.Image, path: Path) -> None:
    if image.mode not in (*_MODES_8_BIT, *_MODES_16_BIT):
        raise ImageError(f"{path}: has colour mode {image.mode}, which no radiograph has: export it as grey PNG")


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path}: is damaged or cut short ({str(error) or type(error).__name__}): fetch the file again")


def _grey(image: Image.Image) -> Image.Image:
    """The picture in mode L."""
    if image.mode in _MODES_16_BIT:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("LA", "RGBA"):
        # Transparent pixels keep their colour: alpha carries nothing in a radiograph.
        return image.getchannel("L") if image.mode == "LA" else image.convert("RGB").convert("L")
    return image.convert("RGB").convert("L") if image.mode in ("P", "PA") else image.convert("L")


def _square(grey: Image.Image) -> Image.Image:
    if grey.width == grey.height:
        return grey
    side = max(grey.size)
    canvas = Image.new("L", (side, side), color=0)
    canvas.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return canvas
