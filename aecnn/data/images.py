"""Radiograph files as square 8-bit arrays: what is accepted, what is refused, and how they are scaled.

Accepted are files of up to `MAX_SIDE_PX` a side, told apart by their content, whatever their names:

- PNG and JPEG: grey (1, 2, 4 and 8 bit), grey with alpha, palette, RGB and RGBA. Alpha is ignored; colours become
  luminance, which leaves equal channels, as some ChestX-ray14 files have them, exactly as they are;
- 16-bit PNG: the upper eight of the bits declared in `FilesConfig.bits_stored` are kept (``value >> (bits - 8)``);
- DICOM: see `aecnn.data.dicom`.

A PNG or JPEG is turned as its EXIF orientation says, as every viewer turns it; EXIF that is damaged says nothing.

Pillow does the decoding; ``benchmarks/results/decoders.md`` says why. Its own guard against huge images is a global
that warns, and warnings cannot be caught safely in threads. So the files are opened by their format's class, which
leaves that guard to us. A PNG's checksums are compared beforehand, in a sixtieth of the time that decoding takes:
checking a file then finds what decoding it would find, and damage that Pillow lets through. A JPEG has none: damage
inside its pixels can pass unseen.
"""

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from aecnn.config import FilesConfig
from aecnn.data.bounded import BoundedStream
from aecnn.data.dicom import decode_dicom, verify_dicom
from aecnn.errors import ImageError

DECODER_VERSION: int = 2  # raised when any decoded pixel changes: a cache of another version is not valid
DEFAULT_FILES = FilesConfig()
MAX_SIDE_PX = 8192  # the largest detectors give about 5,000; a square of this side takes 64 MiB
MAX_FILE_BYTES = 256 * 2**20
MAX_PNG_PARTS = 65_536  # most programs write parts of 8 KiB and more
MAX_JPEG_SCANS = 64  # a progressive JPEG has about ten, and each costs the time of a whole picture
MAX_JPEG_PARTS = 4_096  # before the pixels; a large colour profile has 255

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_JPEG_APP1 = 0xE1
_EXIF_MAGIC = b"Exif\0\0"
_ORIENTATION_TAG, _EXIF_SHORT = 0x0112, 3
_DICOM_MAGIC = b"DICM"
_DICOM_MAGIC_AT = 128
_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # older Pillow opens 16-bit grey as "I"
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True, eq=False)
class Radiograph:
    """One decoded file before squaring and scaling.

    Attributes:
        grey: [H, W] upright, and the brighter, the denser.
        format: ``PNG``, ``JPEG`` or ``DICOM``.
        mode: Pillow's mode, or the DICOM photometric interpretation.
        bits: Of the file's values: 8, 16, or a DICOM's BitsStored.
        bits_used: The bits that its values need, such as 12 for a 12-bit picture in a 16-bit PNG.
    """

    grey: npt.NDArray[np.uint8]  # [H, W]
    format: str
    mode: str
    bits: int
    bits_used: int


def decode_radiograph(path: Path, *, size_px: int, files: FilesConfig = DEFAULT_FILES) -> npt.NDArray[np.uint8]:
    """Gives a radiograph as a square of the wanted size, see `square_and_scale`.

    Args:
        path: A PNG, JPEG or DICOM file.
        size_px: Side of the result.
        files: What is accepted, and how values become grey.

    Returns:
        [size_px, size_px] grey values from 0 to 255.

    Raises:
        ImageError: The file is missing, damaged, cut short, too large, or not a grey picture. One sentence with its
            name.
    """
    return decode_content(read_file(path), path, size_px=size_px, files=files)


def decode_content(
    content: bytes, path: Path, *, size_px: int, files: FilesConfig = DEFAULT_FILES
) -> npt.NDArray[np.uint8]:
    """Does `decode_radiograph` for a file already read; `path` is for the messages."""
    return square_and_scale(open_content(content, path, files=files).grey, size_px=size_px)


def verify_radiograph(path: Path, *, files: FilesConfig = DEFAULT_FILES) -> None:
    """Checks a file without decoding its pixels: format, size, mode, a PNG's checksums and a DICOM's header.

    Raises:
        ImageError: As `decode_radiograph`, except for damage that only decoding shows.
    """
    content = read_file(path)
    if _is_dicom(content):
        verify_dicom(content, path, files=files, max_side_px=MAX_SIDE_PX)
    else:
        _open_picture(content, path, files=files)


def read_file(path: Path) -> bytes:
    """Gives the bytes of an image file.

    Raises:
        ImageError: It cannot be read, is no ordinary file, is empty, is larger than `MAX_FILE_BYTES`, or changes its
            size meanwhile.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe waits for its writer, perhaps forever
            raise ImageError(f"{path}: is no ordinary file (a folder, pipe or device): remove it from the images")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                limit = f"{MAX_FILE_BYTES // 2**20} MiB"
                raise ImageError(f"{path}: is larger than {limit}, which no radiograph here may be")
            content = file.read(size + 1)  # room for its size alone: for the limit's, each call would cost page faults
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) != size:
        raise ImageError(f"{path}: changed its size while it was read: try again when it is written to the end")
    if not content:
        raise ImageError(f"{path}: is empty: fetch the file again")
    return content


def open_content(content: bytes, path: Path, *, files: FilesConfig = DEFAULT_FILES) -> Radiograph:
    """Decodes a file already read, in its own size and proportions.

    Args:
        content: The whole file.
        path: Where it is from, for the messages.
        files: What is accepted, and how values become grey.

    Raises:
        ImageError: As `decode_radiograph`.
    """
    if _is_dicom(content):
        picture = decode_dicom(content, path, files=files, max_side_px=MAX_SIDE_PX)
        return Radiograph(picture.grey, "DICOM", picture.photometric, picture.bits, picture.bits_used)
    image = _open_picture(content, path, files=files)
    try:
        image.load()
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if image.mode in _MODES_16_BIT:
        return _from_16_bits(image, path, files=files)
    grey = _upright(np.array(image if image.mode == "L" else image.convert("L")), image)  # [H, W]
    used = int(grey.max()).bit_length()
    bits = _png_bits(content) if image.format == "PNG" else 8
    if bits == 16:  # colours, of which Pillow keeps the upper eight bits
        used += 8 if used else 0
    return Radiograph(grey, str(image.format), image.mode, bits, used)


def square_and_scale(grey: npt.NDArray[np.uint8], *, size_px: int) -> npt.NDArray[np.uint8]:
    """Gives a picture as a square of the wanted size.

    A picture that is not square gets black borders on its two shorter sides, so that proportions stay. Then it is
    scaled: down by the mean of the pixels whose centres lie in each new pixel (its exact area where the sides divide),
    up bilinearly.

    Args:
        grey: [H, W] values from 0 to 255.
        size_px: Side of the result.

    Returns:
        [size_px, size_px].
    """
    height, width = grey.shape
    side = max(height, width)
    if height != width:
        square = np.zeros((side, side), dtype=np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = grey
        grey = square
    if side == size_px:
        return grey
    image = Image.fromarray(grey)
    if side % size_px == 0:
        return np.array(image.reduce(side // size_px))  # the same mean, rounded once, in a quarter of the time
    scaling = Image.Resampling.BOX if side > size_px else Image.Resampling.BILINEAR
    return np.array(image.resize((size_px, size_px), scaling))  # [size_px, size_px]


def _is_dicom(content: bytes) -> bool:
    is_other = content.startswith((_PNG_MAGIC, _JPEG_MAGIC))
    return not is_other and content.startswith(_DICOM_MAGIC, _DICOM_MAGIC_AT)


def _open_picture(content: bytes, path: Path, *, files: FilesConfig) -> Image.Image:
    """A PNG or JPEG with its header read, its size and mode checked, and not yet decoded."""
    try:
        if content.startswith(_PNG_MAGIC):
            _check_png(content)
            image: Image.Image = PngImageFile(io.BytesIO(content))
        elif content.startswith(_JPEG_MAGIC):
            rest, exif = _split_exif(content)
            image = JpegImageFile(BoundedStream(rest))
            image.info["exif"] = exif
        else:
            raise ImageError(
                f"{path}: is neither PNG, JPEG nor DICOM with DICM at byte 128 (starts with {content[:8]!r}): "
                "export it as one of these"
            )
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if max(image.size) > MAX_SIDE_PX or min(image.size) < 1:
        size = f"{image.width} × {image.height}"
        raise ImageError(f"{path}: has {size} pixels, accepted are up to {MAX_SIDE_PX} a side: scale it down")
    if image.mode not in (*_MODES_8_BIT, *_MODES_16_BIT):
        raise ImageError(f"{path}: has colour mode {image.mode}, which no radiograph has: export it as grey PNG")
    if image.mode == "P" and image.palette is None:
        raise _damaged(path, ValueError("its palette is missing"))
    if image.format == "JPEG" and (scans := content.count(_JPEG_SCAN)) > MAX_JPEG_SCANS:
        raise ImageError(f"{path}: has {scans} scans, accepted are up to {MAX_JPEG_SCANS}: export it as PNG")
    if image.format == "PNG" and image.mode in _MODES_8_BIT and _png_bits(content) == 16 and files.bits_stored < 16:
        raise ImageError(
            f"{path}: has 16-bit colours, and files.bits_stored {files.bits_stored} is for grey: export it as grey PNG"
        )
    return image


def _check_png(content: bytes) -> None:
    """Walks through a PNG's chunks and compares their checksums.

    Raises:
        ValueError: A checksum is wrong, the end is missing, or there are more than `MAX_PNG_PARTS`.
    """
    view = memoryview(content)
    place, kind, parts = len(_PNG_MAGIC), b"", 0
    while kind != b"IEND":
        parts += 1
        if parts > MAX_PNG_PARTS:
            raise ValueError(f"it has over {MAX_PNG_PARTS} parts")
        if place + 12 > len(content):
            raise ValueError("its end is missing")
        length, kind = struct.unpack_from(">I4s", content, place)
        if parts == 1 and kind != b"IHDR":
            raise ValueError(f"its first part is {kind.decode('latin-1')!r}, expected 'IHDR'")
        if place + 12 + length > len(content):
            raise ValueError(f"its part {kind.decode('latin-1')!r} goes on past its end")
        (expected,) = struct.unpack_from(">I", content, place + 8 + length)
        if zlib.crc32(view[place + 4 : place + 8 + length]) != expected:
            raise ValueError(f"the checksum of its part {kind.decode('latin-1')!r} is wrong")
        place += 12 + length


def _png_bits(content: bytes) -> int:
    """Bits of a channel: 16, or 8 for 8 and fewer."""
    return 16 if content[len(_PNG_MAGIC) + 16] == 16 else 8


def _from_16_bits(image: Image.Image, path: Path, *, files: FilesConfig) -> Radiograph:
    values = np.asarray(image)  # [H, W]
    highest = int(values.max())
    if highest >> files.bits_stored:
        raise ImageError(
            f"{path}: has a value of {highest}, and files.bits_stored {files.bits_stored} allows up to "
            f"{2**files.bits_stored - 1}: set files.bits_stored to {highest.bit_length()} or more"
        )
    grey = np.empty(values.shape, dtype=np.uint8)
    np.right_shift(values, files.bits_stored - 8, out=grey, casting="unsafe")  # no copy in between
    return Radiograph(_upright(grey, image), str(image.format), image.mode, 16, highest.bit_length())


def _upright(grey: npt.NDArray[np.uint8], image: Image.Image) -> npt.NDArray[np.uint8]:
    """Turns and mirrors the pixels of a loaded picture as its EXIF orientation says (EXIF 2.32, tag 0x0112)."""
    exif = image.info.get("exif")
    orientation = _exif_orientation(exif) if isinstance(exif, bytes) else 1  # a PNG may have a text of that name
    if orientation == 1:
        return grey
    if orientation in (3, 4, 6, 7):  # the first row is below, or on the right
        grey = grey[::-1]
    if orientation in (2, 3, 7, 8):  # the first column is on the right, or below
        grey = grey[:, ::-1]
    return np.ascontiguousarray(grey.T if orientation >= 5 else grey)


def _split_exif(content: bytes) -> tuple[bytes, bytes]:
    """Gives a JPEG without its EXIF, and the first part of that.

    Pillow would look into it for the resolution: it warns of damage, and copies whatever entries point to, again and
    again.

    Raises:
        ValueError: There are more than `MAX_JPEG_PARTS`.
    """
    kept: list[bytes] = []
    exif, begin, place = b"", 0, 2
    for _ in range(MAX_JPEG_PARTS):
        if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] == _JPEG_SCAN[1]:
            return b"".join([*kept, content[begin:]]) if kept else content, exif
        end = place + 1  # 0xFF may be repeated
        if content[place + 1] != 0xFF:
            end = place + 2 + int(struct.unpack_from(">H", content, place + 2)[0])
        if content[place + 1] == _JPEG_APP1 and content.startswith(_EXIF_MAGIC, place + 4):
            exif = exif or content[place + 4 : end]
            kept.append(content[begin:place])
            begin = end
        place = end
    raise ValueError(f"it has over {MAX_JPEG_PARTS} parts before its pixels")


def _exif_orientation(exif: bytes) -> int:
    """From 1 to 8; 1, as it is, where the EXIF data is absent, damaged or says something else."""
    tiff = exif.removeprefix(_EXIF_MAGIC)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return 1
        (place,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, place)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, place + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == _EXIF_SHORT and 1 <= value <= 8 else 1
    except struct.error:  # it is cut short
        return 1
    return 1


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path}: is damaged or cut short ({str(error) or type(error).__name__}): fetch the file again")
