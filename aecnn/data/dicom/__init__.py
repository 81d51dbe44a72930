"""DICOM files as grey pictures: frontal chest radiographs of one frame, upright, the brighter, the denser.

Values become grey in the standard's order (PS3.3 C.11.1, C.11.2): modality LUT or rescale, then the first VOI LUT or
the first window, then eight bits, inverted for MONOCHROME1. Padding around the picture becomes black. Without VOI LUT
and window, the full range of BitsStored becomes the full range of grey: the same value is then the same grey in every
picture of a machine, which the range of the picture's own values would not give (one lead marker moves it). A picture
that uses 12 of 16 declared bits comes out dark; `DicomPicture.bits_used` tells.

pydicom reads headers and, with the codecs of the extra ``dicom``, compressed pixels. It is imported when the first
DICOM file comes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aecnn.config import FilesConfig
from aecnn.data.dicom.grey import grey_table, through_table, upright
from aecnn.data.dicom.header import read_header
from aecnn.data.dicom.pixels import check_pixels, read_values


@dataclass(frozen=True, eq=False)
class DicomPicture:
    """One decoded DICOM file.

    Attributes:
        grey: [H, W] upright, bright is dense.
        photometric: ``MONOCHROME1`` or ``MONOCHROME2``, as the file has it.
        bits: BitsStored.
        bits_used: The highest bit that any of the file's values uses.
    """

    grey: npt.NDArray[np.uint8]  # [H, W]
    photometric: str
    bits: int
    bits_used: int


def decode_dicom(content: bytes, path: Path, *, files: FilesConfig, max_side_px: int) -> DicomPicture:
    """Decodes a DICOM file.

    Args:
        content: The whole file.
        path: Where it is from, for the messages.
        files: The accepted modalities, body parts and views.
        max_side_px: The most rows and columns.

    Raises:
        ImageError: The file is damaged, or no picture that is accepted; or pydicom is not installed.
    """
    header = read_header(content, path, files=files, max_side_px=max_side_px)
    values = read_values(header)  # [H, W] bit patterns
    grey = through_table(grey_table(header), values)  # [H, W]
    mask = (1 << header.bits_stored) - 1
    return DicomPicture(
        grey=upright(grey, header.orientation),
        photometric=header.photometric,
        bits=header.bits_stored,
        bits_used=(int(np.bitwise_or.reduce(values, axis=None)) & mask).bit_length(),
    )


def verify_dicom(content: bytes, path: Path, *, files: FilesConfig, max_side_px: int) -> None:
    """Checks a DICOM file without decoding its pixels: the header, and the size and kind of the pixel data.

    Raises:
        ImageError: As `decode_dicom`, except for damage that only decoding shows.
    """
    header = read_header(content, path, files=files, max_side_px=max_side_px)
    grey_table(header)
    check_pixels(header)
