"""The stored values of a DICOM's pixel data, native or compressed.

A compressed picture's own header is compared with the DICOM's before a codec sees it: the codecs take the memory that
it asks for. Its precision need not be BitsStored: DCMTK's lossless JPEGs have that of BitsAllocated, others that of the
values they happen to have. So each value is compared with BitsStored, of which none may be lost.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn.data.dicom.header import Header
from aecnn.data.dicom.lossless_jpeg import decode_lossless_jpeg
from aecnn.data.dicom.reading import damage_named
from aecnn.data.dicom.syntax import BIG_ENDIAN, EXTENDED_JPEG, JPEG, JPEG_2000, LOSSLESS_JPEG, NATIVE, RLE
from aecnn.errors import ImageError

MAX_FRAGMENTS = 16_384
MAX_SCANS = 64
MAX_TILES = 4_096

_ITEM = 0xE000FFFE
_SEQUENCE_END = 0xE0DDFFFE
_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: start, and the marker of its sizes
_JPEG_SCAN = b"\xff\xda"
_JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xDA), 0xFF}  # markers without a length

Patterns = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class _Frame:
    """A compressed picture, and what its own header says."""

    content: bytes
    width: int
    height: int
    channels: int
    bits: int  # of a value
    is_signed: bool  # only JPEG 2000 says so


def check_pixels(header: Header) -> None:
    """Checks the pixel data as far as that goes without decoding it.

    Raises:
        ImageError: It is cut short, contradicts the header, or needs a codec that is not installed.
    """
    with damage_named(header.path):
        if header.syntax in NATIVE:
            _native(header)
        else:
            _joined_fragments(header.pixels) if header.syntax == RLE else _checked_frame(header)


def read_values(header: Header) -> Patterns:
    """Gives the stored values as they are: bit patterns, of which the upper ones may be unused.

    Returns:
        [H, W], of 8 or 16 bits.

    Raises:
        ImageError: As `check_pixels`, or the codec finds damage.
    """
    with damage_named(header.path):
        if header.syntax in NATIVE:
            return _native(header)
        if header.syntax == RLE:
            return _run_lengths(_joined_fragments(header.pixels), header)
        frame = _checked_frame(header)
        is_ours = header.syntax in LOSSLESS_JPEG
        values = decode_lossless_jpeg(frame.content) if is_ours else _by_codec(frame.content, header)
        _require_fit(values, frame, header)
        return values.astype(f"u{header.bits_allocated // 8}", copy=False)


def _native(header: Header) -> Patterns:
    size = header.bits_allocated // 8
    count = header.rows * header.columns
    if len(header.pixels) < size * count:
        raise ValueError(f"has {len(header.pixels)} bytes of pixels, Rows × Columns need {size * count}")
    is_big = header.syntax == BIG_ENDIAN
    if size == 1 and is_big and header.pixel_vr == "OW":  # two pixels a word, the first in its lower half
        words = np.frombuffer(header.pixels, dtype=">u2", count=len(header.pixels) // 2)
        return words.astype("<u2").view(np.uint8)[:count].reshape(header.rows, header.columns)
    values = np.frombuffer(header.pixels, dtype=f"{'>' if is_big else '<'}u{size}", count=count)
    return values.reshape(header.rows, header.columns)  # [H, W]


def _checked_frame(header: Header) -> _Frame:
    """The compressed picture in one piece, its own header checked."""
    content = _joined_fragments(header.pixels)
    frame = _jpeg_2000_frame(content) if header.syntax in JPEG_2000 else _jpeg_frame(content)
    if (frame.width, frame.height, frame.channels) != (header.columns, header.rows, 1):
        raise ValueError(
            f"its compressed picture has {frame.width} × {frame.height} pixels of {frame.channels} channels, "
            f"its header says {header.columns} × {header.rows} of 1"
        )
    if frame.bits > header.bits_allocated:
        raise ValueError(_contradiction(frame, header))
    if header.syntax in (JPEG | JPEG_2000):
        _require_codec(frame, header)
    return frame


def _contradiction(frame: _Frame, header: Header) -> str:
    stored = f"BitsAllocated {header.bits_allocated} and BitsStored {header.bits_stored}"
    return f"its compressed picture has values of {frame.bits} bits, its header says {stored}"


def _require_fit(values: Patterns, frame: _Frame, header: Header) -> None:
    """Checks that BitsStored holds every value but padding, and that the sign of each is known.

    Args:
        values: [H, W] as decoded: negative numbers in two's complement of the frame's bits, or of the array's.
        frame: The compressed picture.
        header: What the values are to fit.
    """
    limit = 1 << min(frame.bits, header.bits_stored)  # of those that are not negative, or whose upper bits are cut off
    if header.signed and frame.bits != header.bits_stored:
        limit >>= 1
    if int(values.max()) < limit:
        return
    beyond = values[values >= limit]
    if header.signed:
        beyond = beyond.view(f"i{values.itemsize}")
        if frame.is_signed or frame.bits >= header.bits_stored:  # else nobody knows whether they are negative
            beyond = beyond[(beyond >= 0) | (beyond < -(1 << (header.bits_stored - 1)))]
    if header.padding is not None:
        low, high = header.padding
        beyond = beyond[(beyond < low) | (beyond > high)]
    if len(beyond):
        kind = "signed" if header.signed else "unsigned"
        raise ValueError(f"{_contradiction(frame, header)}, and {len(beyond)} of the {kind} values do not fit")


def _joined_fragments(pixels: memoryview) -> bytes:
    """All fragments of the one frame; the first item is the table of offsets (PS3.5 A.4)."""
    fragments: list[memoryview] = []
    place = 0
    while place + 8 <= len(pixels):
        tag, length = struct.unpack_from("<II", pixels, place)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or place + 8 + length > len(pixels):
            raise ValueError(f"its compressed pixel data breaks off after {len(fragments)} parts")
        fragments.append(pixels[place + 8 : place + 8 + length])
        if len(fragments) > MAX_FRAGMENTS:
            raise ValueError(f"its compressed pixel data has over {MAX_FRAGMENTS} parts")
        place += 8 + length
    if len(fragments) < 2:
        raise ValueError("its compressed pixel data is empty")
    return b"".join(fragments[1:])


def _jpeg_frame(frame: bytes) -> _Frame:
    """What a JPEG or JPEG-LS picture says of itself."""
    if (scans := frame.count(_JPEG_SCAN)) > MAX_SCANS:
        raise ValueError(f"its compressed picture has {scans} scans, accepted are {MAX_SCANS}")
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in _JPEG_SIZES:
            bits, height, width, channels = struct.unpack_from(">BHHB", frame, place + 4)
            return _Frame(frame, width, height, channels, bits=bits, is_signed=False)
        place += 1 if marker == 0xFF else 2
        if marker not in _STANDALONE:
            place += int(struct.unpack_from(">H", frame, place)[0])
    raise ValueError("its compressed picture is no JPEG")


def _jpeg_2000_frame(frame: bytes) -> _Frame:
    """What a JPEG 2000 picture says of itself."""
    place = frame[:4096].find(_CODESTREAM)
    if place < 0:
        raise ValueError("its compressed picture is no JPEG 2000")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, place + 8)
    channels, depth = struct.unpack_from(">HB", frame, place + 40)
    if (right // max(tile_width, 1) + 1) * (bottom // max(tile_height, 1) + 1) > MAX_TILES:
        raise ValueError(f"its compressed picture has over {MAX_TILES} tiles")
    return _Frame(frame, right - left, bottom - top, channels, bits=(depth & 0x7F) + 1, is_signed=bool(depth >> 7))


def _require_codec(frame: _Frame, header: Header) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    codec = (JPEG | JPEG_2000)[header.syntax]
    bits = header.bits_stored if header.syntax == EXTENDED_JPEG and frame.bits == 8 else frame.bits
    if codec == "pillow" and bits != 8:
        name = "JPEG Extended" if header.syntax == EXTENDED_JPEG else "JPEG Baseline"
        reason = f"is {name} of {bits} bits, of which only 8 are read"
        raise ImageError(f"{header.path}: {reason}: convert it to Explicit VR Little Endian")
    if codec not in get_decoder(header.syntax).available_plugins:
        raise ImageError(f"{header.path}: needs the codec {codec}: pip install 'aecnn-federated[dicom]'")


def _by_codec(frame: bytes, header: Header) -> Patterns:
    from pydicom.pixels.decoders.base import get_decoder

    codec = (JPEG | JPEG_2000)[header.syntax]
    item = struct.pack("<II", _ITEM, len(frame) + len(frame) % 2) + frame + b"\0" * (len(frame) % 2)
    whole = struct.pack("<II", _ITEM, 0) + item + struct.pack("<II", _SEQUENCE_END, 0)
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric,
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(header.syntax).as_array(whole, decoding_plugin=codec, validate=False, **options)
    patterns: Patterns = values.astype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}", copy=False)
    return patterns.view(f"u{header.bits_allocated // 8}")  # [H, W]


def _run_lengths(frame: bytes, header: Header) -> Patterns:
    """Decodes RLE (PS3.5 annex G), of which no more is unpacked than the picture has."""
    size, count = header.bits_allocated // 8, header.rows * header.columns
    segments, *offsets = struct.unpack_from("<16I", frame)
    if segments != size:
        raise ValueError(f"its run lengths have {segments} segments, expected {size}")
    ends = [*offsets[1:size], len(frame)]
    planes = [_unpacked(frame[begin:end], count=count) for begin, end in zip(offsets, ends, strict=False)]
    values: Patterns = planes[0]
    if size == 2:  # the upper bytes come first
        values = np.stack(planes, axis=-1).view(">u2")
    return values.reshape(header.rows, header.columns)  # [H, W]


def _unpacked(segment: bytes, *, count: int) -> npt.NDArray[np.uint8]:
    out = bytearray()
    place = 0
    while place + 1 < len(segment) and len(out) < count:
        code = segment[place]
        if code < 128:  # the next bytes as they are
            out += segment[place + 1 : place + 2 + code]
            place += 2 + code
        else:  # the next byte so many times; 128 means nothing
            out += segment[place + 1 : place + 2] * (257 - code) if code > 128 else b""
            place += 2 if code > 128 else 1
    if len(out) < count:
        raise ValueError(f"its run lengths give {len(out)} of {count} bytes")
    return np.frombuffer(out, dtype=np.uint8, count=count)
