"""From a DICOM's stored values to grey, by one table of every bit pattern that a pixel can have.

Shapes: V bit patterns (256 or 65,536), H rows, W columns. PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

import numpy as np
import numpy.typing as npt

from aecnn.data.dicom.header import Header, Lut, Window

Grey = npt.NDArray[np.uint8]
BLOCK_ROWS = 256
_FRONTAL = ({"L", "R"}, {"H", "F"})


def grey_table(header: Header) -> Grey:
    """Gives the grey of every bit pattern: modality LUT or rescale, VOI LUT or window, inversion, padding.

    Returns:
        [V] grey values.
    """
    patterns = np.arange(1 << header.bits_allocated, dtype=np.int64)  # [V]
    stored = _signed(patterns, bits=header.bits_stored) if header.signed else patterns & _mask(header.bits_stored)
    if header.modality_lut is not None:
        values = _look_up(header.modality_lut, stored).astype(np.float64)  # [V]
    else:
        values = stored.astype(np.float64) * header.slope + header.intercept
    if header.voi_lut is not None:
        grey = _eight_bits(_look_up(header.voi_lut, np.floor(values)), bits=header.voi_lut.bits)
    elif header.window is not None:
        grey = np.rint(255.0 * _through_window(values, header.window)).astype(np.uint8)
    else:
        grey = _full_range(values, stored, header)
    if header.photometric == "MONOCHROME1":
        grey = 255 - grey
    if header.padding is not None:
        low, high = header.padding
        whole = _signed(patterns, bits=header.bits_allocated) if header.signed else patterns
        grey[(whole >= low) & (whole <= high)] = 0
    return grey


def through_table(table: Grey, values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Grey:
    """Looks up the grey of every pixel, some rows at a time: NumPy makes eight bytes of each index on the way.

    Args:
        table: [V] grey of each bit pattern.
        values: [H, W] bit patterns.
    """
    grey = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), BLOCK_ROWS):
        grey[top : top + BLOCK_ROWS] = table[values[top : top + BLOCK_ROWS]]
    return grey


def upright(grey: Grey, orientation: tuple[str, str] | None) -> Grey:
    """Turns a frontal picture so that its rows run to the patient's left and its columns to the feet.

    Args:
        grey: [H, W].
        orientation: Where rows and columns run to now. Pictures that do not say so, or that are not frontal, stay.
    """
    if orientation is None:
        return grey
    row, column = orientation
    if row in _FRONTAL[1] and column in _FRONTAL[0]:
        grey, row, column = grey.T, column, row
    if row not in _FRONTAL[0] or column not in _FRONTAL[1]:
        return grey
    if row == "R":
        grey = grey[:, ::-1]
    if column == "H":
        grey = grey[::-1]
    return np.ascontiguousarray(grey)


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _signed(patterns: npt.NDArray[np.int64], *, bits: int) -> npt.NDArray[np.int64]:
    """The two's complement numbers that the lowest bits are."""
    half = 1 << (bits - 1)
    return ((patterns & _mask(bits)) ^ half) - half


def _look_up(lut: Lut, values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    places = np.clip(values - lut.first, 0, len(lut.entries) - 1).astype(np.int64)
    return lut.entries[places]


def _through_window(values: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """From 0 to 1."""
    if window.function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - window.centre) / window.width, -700.0, 700.0)))
    centre, width = window.centre, window.width
    if window.function == "LINEAR":  # PS3.3 C.11.2.1.2.1; LINEAR_EXACT is C.11.2.1.3.2
        centre, width = centre - 0.5, width - 1.0
    if width == 0.0:
        return np.where(values > centre, 1.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _full_range(values: npt.NDArray[np.float64], stored: npt.NDArray[np.int64], header: Header) -> Grey:
    """The upper eight of the declared bits, as in a 16-bit PNG."""
    if header.modality_lut is not None:
        return _eight_bits(values.astype(np.int64), bits=header.modality_lut.bits)
    lowest = -(1 << (header.bits_stored - 1)) if header.signed else 0
    grey = _eight_bits(stored - lowest, bits=header.bits_stored)
    return 255 - grey if header.slope < 0 else grey


def _eight_bits(levels: npt.NDArray[np.int64], *, bits: int) -> Grey:
    scaled = levels >> (bits - 8) if bits >= 8 else levels * 255 // _mask(bits)
    return scaled.astype(np.uint8)
