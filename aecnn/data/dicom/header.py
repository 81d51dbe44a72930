"""What the header of a DICOM radiograph says, checked and in plain types."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aecnn.config import FilesConfig
from aecnn.data.dicom.reading import (
    UNDEFINED_LENGTH,
    Elements,
    bytes_of,
    damage_named,
    first_item,
    read_elements,
    read_meta,
    require_pydicom,
    shown,
    value_of,
    values_of,
)
from aecnn.data.dicom.syntax import require_syntax
from aecnn.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KEYWORDS = (
    *("Modality", "BodyPartExamined", "ViewPosition", "PatientPosition", "PatientOrientation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
_PIXEL_DATA = 0x7FE00010
_ABSENT = "absent"
_LYING = {f"{head}{side}" for head in ("HF", "FF", "LF", "RF", "AF", "PF") for side in ("P", "S", "DR", "DL")}
_POLARITY = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, eq=False)
class Lut:
    """A lookup table (PS3.3 C.11.1.1): value `first` and below become entry 0, those behind the end the last entry."""

    first: int
    bits: int  # of an entry
    entries: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A window (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    centre: float
    width: float
    function: str  # LINEAR, LINEAR_EXACT or SIGMOID


@dataclass(frozen=True, eq=False)
class Header:
    """What is needed to make grey of the pixel data.

    Attributes:
        path: Of the file, for messages.
        syntax: The transfer syntax, a UID.
        pixels: The file from the first byte of the pixel data's value.
        pixel_vr: OB or OW, empty where the file does not say.
        padding: The lowest and the highest padding value.
        orientation: Where rows and columns run to: such as L and F.
    """

    path: Path
    syntax: str
    pixels: memoryview
    pixel_vr: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    padding: tuple[int, int] | None
    modality_lut: Lut | None
    slope: float
    intercept: float
    voi_lut: Lut | None
    window: Window | None
    orientation: tuple[str, str] | None


def read_header(content: bytes, path: Path, *, files: FilesConfig, max_side_px: int) -> Header:
    """Reads and checks the header of a DICOM file.

    Raises:
        ImageError: It is damaged or not what is accepted, everything wrong in one sentence; or pydicom is missing.
    """
    require_pydicom(path)
    with damage_named(path):
        syntax, begin = read_meta(content, path)
        require_syntax(syntax, path)
        elements = read_elements(content, syntax=syntax, begin=begin, keywords=_KEYWORDS)
        faults = [*_subject_faults(elements.dataset, files), *_picture_faults(elements, max_side_px=max_side_px)]
        if faults:
            raise ImageError(f"{path}: {'; '.join(faults)}")
        return _header(elements, content, path)


def _text(dataset: "Dataset", keyword: str) -> str:
    return str(value_of(dataset, keyword) or "").strip().upper()


def _number(dataset: "Dataset", keyword: str, *, default: int) -> int:
    value = value_of(dataset, keyword)
    return default if value is None else int(value)


def _subject_faults(dataset: "Dataset", files: FilesConfig) -> list[str]:
    """Whether it is a frontal chest radiograph, as far as the header says."""
    modality, body_part, view = (_text(dataset, key) for key in ("Modality", "BodyPartExamined", "ViewPosition"))
    view_tag = "ViewPosition (0018,5101)"
    if not view and (position := _text(dataset, "PatientPosition")) not in _LYING:
        view, view_tag = position, "PatientPosition (0018,5100)"
    checks = (
        ("Modality (0008,0060)", modality or _ABSENT, files.dicom_modalities, "dicom_modalities"),
        ("BodyPartExamined (0018,0015)", body_part, files.dicom_body_parts, "dicom_body_parts"),
        (view_tag, view, files.dicom_views, "dicom_views"),
    )
    return [
        f"{tag} is {shown(value)}, data.files.{key} accepts {', '.join(accepted)}"
        for tag, value, accepted, key in checks
        if value and value not in {entry.upper() for entry in accepted}
    ]


def _picture_faults(elements: Elements, *, max_side_px: int) -> list[str]:
    """Whether it is one grey picture of integers."""
    if elements.pixel_tag != _PIXEL_DATA:
        kind = "float pixels" if elements.pixel_tag else "no pixel data (7FE0,0010)"
        return [f"has {kind}: export the picture itself, with integer values"]
    dataset = elements.dataset
    photometric, shape = _text(dataset, "PhotometricInterpretation"), _text(dataset, "PresentationLUTShape")
    samples, frames = (_number(dataset, key, default=1) for key in ("SamplesPerPixel", "NumberOfFrames"))
    rows, columns = (_number(dataset, key, default=0) for key in ("Rows", "Columns"))
    allocated, stored, high_bit, sign = _bits(dataset)
    faults = []
    if photometric not in _POLARITY or samples != 1:
        found = (
            f"PhotometricInterpretation (0028,0004) is {shown(photometric or _ABSENT)} with {samples} samples a pixel"
        )
        faults.append(f"{found}, accepted is grey: MONOCHROME1 or MONOCHROME2 with one")
    elif shape and shape != _POLARITY[photometric]:
        faults.append(
            f"{photometric} contradicts PresentationLUTShape (2050,0020) {shown(shape)}: correct the wrong one"
        )
    if frames != 1:
        faults.append(f"NumberOfFrames (0028,0008) is {frames}, accepted is 1: export a single picture")
    if not (1 <= rows <= max_side_px and 1 <= columns <= max_side_px):
        faults.append(f"has {columns} × {rows} pixels, accepted are 1 to {max_side_px} a side")
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high_bit != stored - 1 or sign not in (0, 1):
        found = f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}, PixelRepresentation {sign}"
        faults.append(f"has {found}, accepted are 8 or 16 bits allocated, the lowest of them stored, signed or not")
    return faults


def _bits(dataset: "Dataset") -> tuple[int, int, int, int]:
    """BitsAllocated, BitsStored, HighBit and PixelRepresentation."""
    allocated = _number(dataset, "BitsAllocated", default=0)
    stored = _number(dataset, "BitsStored", default=allocated)
    high_bit = _number(dataset, "HighBit", default=stored - 1)
    return allocated, stored, high_bit, _number(dataset, "PixelRepresentation", default=0)


def _header(elements: Elements, content: bytes, path: Path) -> Header:
    dataset = elements.dataset
    allocated, stored, _, sign = _bits(dataset)
    slope, intercept = (value_of(dataset, key) for key in ("RescaleSlope", "RescaleIntercept"))
    pixels = memoryview(content)[elements.pixels_at :]
    if elements.pixels_length != UNDEFINED_LENGTH:
        pixels = pixels[: elements.pixels_length]
    return Header(
        path=path,
        syntax=elements.syntax,
        pixels=pixels,
        pixel_vr=elements.pixel_vr,
        rows=_number(dataset, "Rows", default=0),
        columns=_number(dataset, "Columns", default=0),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=sign == 1,
        photometric=_text(dataset, "PhotometricInterpretation"),
        padding=_padding(elements, bits=allocated, signed=sign == 1),
        modality_lut=_lut(elements, "ModalityLUTSequence", signed=sign == 1),
        slope=_finite(1.0 if slope is None else slope, "RescaleSlope"),
        intercept=_finite(0.0 if intercept is None else intercept, "RescaleIntercept"),
        voi_lut=_lut(elements, "VOILUTSequence", signed=sign == 1),
        window=_window(dataset),
        orientation=_orientation(values_of(dataset, "PatientOrientation")),
    )


def _finite(value: Any, keyword: str) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{keyword} is {value}")
    return float(value)


def _padding(elements: Elements, *, bits: int, signed: bool) -> tuple[int, int] | None:
    """The padding values, which writers store as signed and as unsigned numbers whatever the pixels are."""
    ends: list[int] = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if keyword in elements.dataset and (raw := bytes_of(elements.dataset, keyword)[0]):
            number = int.from_bytes(raw[:2], "little" if elements.byte_order == "<" else "big") & ((1 << bits) - 1)
            ends.append(number - (1 << bits) if signed and number >> (bits - 1) else number)
    return (min(ends), max(ends)) if ends and "PixelPaddingValue" in elements.dataset else None


def _window(dataset: "Dataset") -> Window | None:
    centre, width = (value_of(dataset, key) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    if function not in _VOI_FUNCTIONS:
        raise ValueError(f"VOILUTFunction (0028,1056) is {shown(function)}, known are {', '.join(_VOI_FUNCTIONS)}")
    window = Window(_finite(centre, "WindowCenter"), _finite(width, "WindowWidth"), function)
    if window.width < 1 and (function == "LINEAR" or window.width <= 0):
        raise ValueError(f"WindowWidth (0028,1051) is {window.width:g}, which {function} does not allow")
    return window


def _orientation(directions: Sequence[Any]) -> tuple[str, str] | None:
    """The main directions of rows and columns: the first letters."""
    if len(directions) != 2:
        return None
    row, column = (str(direction).strip().upper()[:1] for direction in directions)
    return row, column


def _lut(elements: Elements, keyword: str, *, signed: bool) -> Lut | None:
    item = first_item(elements, keyword)
    if item is None:
        return None
    descriptor, vr = bytes_of(item, "LUTDescriptor")
    data, _ = bytes_of(item, "LUTData")
    count, first, bits = np.frombuffer(descriptor[:6], dtype=f"{elements.byte_order}u2").tolist()
    count = count or 65_536
    if first >= 32_768 and (vr == "SS" or (not vr and signed)):
        first -= 65_536
    is_packed = bits == 8 and len(data) < 2 * count  # two entries a word, the first in its lower half
    entries = np.frombuffer(data, dtype="<u2" if not is_packed else "u1")
    if not is_packed:
        entries = entries.view(f"{elements.byte_order}u2")
    elif elements.byte_order == ">":
        entries = entries[: len(entries) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    if not 8 <= bits <= 16 or len(entries) < count or int(entries[:count].max()) >> bits:
        raise ValueError(f"its {keyword} has {len(entries)} entries, and says {count} of {bits} bits")
    return Lut(first=first, bits=bits, entries=entries[:count].astype(np.int64))
