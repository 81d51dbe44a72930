"""Lossless JPEG (ITU-T T.81, annex H), the commonest compression of radiographs, decoded with NumPy.

GDCM ends the whole process on some damaged files and on some sound ones (of 7-bit values), and the other codec that
pydicom knows comes under the GPL. So it is read here. Which bits belong to which pixel is the one thing that must be
found out pixel by pixel; code lengths, differences and sums are found for all pixels at once.

Shapes: H rows, W columns, P pixels of a strip, N bits of a piece of the coded data.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_BITS = 16

_FRAME, _TABLES, _RESTART, _SCAN = 0xC3, 0xC4, 0xDD, 0xDA
_OTHER_FRAMES = {*range(0xC0, 0xD0)} - {_FRAME, _TABLES, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9), 0xFF}
_RESTART_MARKER = re.compile(rb"(?<!\xff)\xff++[\xd0-\xd7]")
_NEXT_MARKER = re.compile(rb"(?<!\xff)\xff++[^\x00\xff\xd0-\xd7]")
_PIECE_BYTES = 2**19
_WINDOW_BITS = 16  # the longest code

Levels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Code:
    """A Huffman code, by the next 16 bits: how long the code is, and how many bits of difference follow it.

    Attributes:
        lengths: [65536] bits of the code, 0 where no code begins like this.
        sizes: [65536] bits of the difference.
    """

    lengths: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.uint8]


def decode_lossless_jpeg(frame: bytes) -> npt.NDArray[np.uint16]:
    """Gives the values of a lossless JPEG of one channel.

    Returns:
        [H, W].

    Raises:
        ValueError: It is damaged, or uses what no radiograph does.
    """
    codes: dict[int, _Code] = {}
    shape: tuple[int, int, int] | None = None  # bits, H, W
    interval, place = 0, 2
    while place + 4 <= len(frame):
        marker = frame[place + 1]
        if frame[place] != 0xFF:
            raise ValueError(f"has {frame[place]:#x} at byte {place} where a marker should be")
        if marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", frame, place + 2)
        segment = frame[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == _FRAME:
            if shape is not None:
                raise ValueError("gives its size twice")
            shape = struct.unpack_from(">BHH", segment)
        elif marker in _OTHER_FRAMES:
            raise ValueError("is a JPEG of another kind")
        elif marker == _TABLES:
            codes |= _huffman_codes(segment)
        elif marker == _RESTART:
            (interval,) = struct.unpack(">H", segment)
        elif marker == _SCAN:
            if shape is None:
                raise ValueError("has a scan before its size")
            return _decode_scan(segment, frame[place:], codes=codes, shape=shape, interval=interval)
    raise ValueError("has no scan")


def _huffman_codes(segment: bytes) -> dict[int, _Code]:
    """The tables of one marker segment (annex C): numbers of codes by length, then what they stand for."""
    codes: dict[int, _Code] = {}
    while segment:
        number, counts = segment[0], segment[1:17]
        symbols = segment[17 : 17 + sum(counts)]
        if len(counts) != _WINDOW_BITS or len(symbols) != sum(counts) or max(symbols, default=0) > MAX_BITS:
            raise ValueError("has a damaged Huffman table")
        lengths = np.zeros(1 << _WINDOW_BITS, dtype=np.uint8)
        sizes = np.zeros(1 << _WINDOW_BITS, dtype=np.uint8)
        begin = 0
        for symbol, bits in zip(symbols, np.repeat(np.arange(1, 17), list(counts)).tolist(), strict=True):
            end = begin + (1 << (_WINDOW_BITS - bits))
            if end > 1 << _WINDOW_BITS:
                raise ValueError("has a damaged Huffman table")
            lengths[begin:end], sizes[begin:end] = bits, symbol
            begin = end
        codes[number & 15] = _Code(lengths, sizes)
        segment = segment[17 + len(symbols) :]
    return codes


def _decode_scan(
    segment: bytes, coded: bytes, *, codes: dict[int, _Code], shape: tuple[int, int, int], interval: int
) -> npt.NDArray[np.uint16]:
    """Decodes the scan, which restarts every `interval` pixels, as strips of whole rows."""
    bits, height, width = shape
    channels, _, selectors, predictor, _, shift = struct.unpack(">6B", segment)
    code = codes.get(selectors >> 4)
    if channels != 1 or code is None or not 1 <= predictor <= 7 or not 2 <= bits <= MAX_BITS or shift >= bits:
        raise ValueError(f"has a scan of {channels} channels with predictor {predictor} that cannot be read")
    if interval % width:
        raise ValueError(f"restarts every {interval} pixels, which is within a row")
    end = _NEXT_MARKER.search(coded)
    strips = _RESTART_MARKER.split(coded[: end.start()] if end else coded, maxsplit=height)
    rows = interval // width or height
    values = np.empty((height, width), dtype=np.uint16)
    for index, top in enumerate(range(0, height, rows)):
        if index >= len(strips):
            raise ValueError(f"breaks off after {top} of {height} rows")
        count = min(rows, height - top)
        differences = _differences(strips[index].replace(b"\xff\x00", b"\xff"), code, num_pixels=count * width)
        first = 1 << (bits - shift - 1)
        strip = _predicted(differences.reshape(count, width), first=first, predictor=predictor)
        values[top : top + count] = strip << shift
    return values


def _differences(coded: bytes, code: _Code, *, num_pixels: int) -> npt.NDArray[np.int32]:
    """[P] what each pixel adds to what its neighbours promise (annex H.1.2.2)."""
    data = np.frombuffer(coded + bytes(8), dtype=np.uint8)
    differences = np.empty(num_pixels, dtype=np.int32)
    done, place = 0, 0  # pixels, bits
    while done < num_pixels:
        begin = place // 8
        if begin >= len(coded):
            raise ValueError(f"breaks off after {done} of {num_pixels} pixels")
        windows = _windows(data[begin : begin + _PIECE_BYTES + 8])  # [N]
        steps = (code.lengths[windows] + code.sizes[windows] % MAX_BITS).tobytes()  # 16 bits of difference: no more
        places = _walk(steps, begin=place - 8 * begin, most=num_pixels - done)
        place = 8 * begin + places.pop()
        at = np.array(places, dtype=np.int64)  # [P] where in the piece each pixel's code begins
        lengths, sizes = code.lengths[windows[at]], code.sizes[windows[at]]
        if not lengths.all() or place > 8 * len(coded):
            raise ValueError(f"has a code that does not exist, or breaks off, after {done} pixels")
        extra = _bits_at(data, at + lengths + 8 * begin, sizes)
        differences[done : done + len(at)] = _signed(extra, sizes)
        done += len(at)
    return differences


def _windows(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """[N] the 16 bits that begin at each bit."""
    count = len(data) - 8
    wide = (data[:count].astype(np.uint32) << 16) | (data[1 : count + 1].astype(np.uint32) << 8) | data[2 : count + 2]
    shifts = np.arange(8, 0, -1, dtype=np.uint32)
    return ((wide[:, None] >> shifts) & 0xFFFF).astype(np.uint16).ravel()


def _walk(steps: bytes, *, begin: int, most: int) -> list[int]:
    """Where each pixel begins, up to `most` of them, and last where the next one does."""
    places: list[int] = []
    place, end = begin, len(steps)
    while place < end and len(places) < most:
        places.append(place)
        place += steps[place] or end
    return [*places, place]


def _bits_at(
    data: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], sizes: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int32]:
    """[P] the numbers of up to 15 bits that begin at the given bits."""
    first = np.minimum(places >> 3, len(data) - 3)
    wide = (data[first].astype(np.int32) << 16) | (data[first + 1].astype(np.int32) << 8) | data[first + 2]
    sizes = sizes % MAX_BITS
    numbers: npt.NDArray[np.int32] = wide >> (24 - (places & 7) - sizes).astype(np.int32)
    return numbers & ((1 << sizes.astype(np.int32)) - 1)


def _signed(extra: npt.NDArray[np.int32], sizes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """[P] the differences: numbers that begin with a 0 bit are negative (table H.2); size 16 is 32,768."""
    bits = sizes.astype(np.int32)
    negative = (bits > 0) & (extra < (1 << np.maximum(bits - 1, 0)))
    extra = extra - np.where(negative, (1 << bits) - 1, 0)
    extra[bits == MAX_BITS] = 32_768
    return extra


def _predicted(differences: npt.NDArray[np.int32], *, first: int, predictor: int) -> npt.NDArray[np.uint16]:
    """[H, W] the values, modulo 65,536: the first row from the left, the first column from above (table H.1)."""
    height, width = differences.shape
    values = np.empty((height, width), dtype=np.int64)
    values[0] = first + np.cumsum(differences[0])
    for y in range(1, height):
        above = values[y - 1] & 0xFFFF
        values[y] = _row(above, differences[y].astype(np.int64), predictor=predictor)
    return (values & 0xFFFF).astype(np.uint16)


def _row(above: Levels, differences: Levels, *, predictor: int) -> Levels:
    """[W] one row from the one above it."""
    gradient = np.diff(above)  # [W - 1] above minus the corner above to the left
    row = differences.copy()
    row[0] += above[0]
    if predictor == 1:
        return np.cumsum(row)
    if predictor == 2:
        row[1:] += above[1:]
    elif predictor == 3:
        row[1:] += above[:-1]
    elif predictor in (4, 5):
        row[1:] += gradient if predictor == 4 else gradient >> 1
        return np.cumsum(row)
    else:  # the sum within a row is rounded at each pixel
        upper, left = above.tolist(), int(row[0]) & 0xFFFF
        for x, difference in enumerate(differences[1:].tolist(), start=1):
            guess = upper[x] + ((left - upper[x - 1]) >> 1) if predictor == 6 else (left + upper[x]) >> 1
            left = (guess + difference) & 0xFFFF
            row[x] = left
    return row
