"""DICOM elements by their keyword, read by pydicom within bounds (see `aecnn.data.bounded`)."""

import contextlib
import logging
import re
import struct
import warnings
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aecnn.data.bounded import BoundedStream
from aecnn.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_VALUE_BYTES = 65_536  # of one element looked at
MAX_REASON_CHARACTERS = 200
MAX_SHOWN_CHARACTERS = 64

UNDEFINED_LENGTH = 0xFFFFFFFF
_DATA_AT = 132  # behind the preamble and DICM
_META_GROUP = 2
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double, integer
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_PYDICOM_MODULES = r"pydicom(\.|$)"
_DAMAGE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Elements:
    """The elements asked for, and where the pixel data begins.

    Attributes:
        dataset: Only the elements asked for.
        syntax: The transfer syntax, a UID.
        pixel_tag: The number of the pixel data's element, 0 where there is none.
        pixel_vr: Its value representation, empty where the file does not say.
        pixels_at: Where in the file its value begins.
        pixels_length: The length it declares, `UNDEFINED_LENGTH` where it is compressed.
    """

    dataset: "Dataset"
    syntax: str
    pixel_tag: int
    pixel_vr: str
    pixels_at: int
    pixels_length: int

    @property
    def byte_order(self) -> str:
        """``<`` or ``>``, as `struct` has it."""
        return ">" if self.syntax == _BIG_ENDIAN else "<"


@contextlib.contextmanager
def damage_named(path: Path) -> Generator[None, None, None]:
    """Turns what pydicom and the codecs raise on damaged files into a sentence with the file's name."""
    try:
        yield
    except (*_DAMAGE, struct.error) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or type(error).__name__
        raise ImageError(f"{path}: is damaged or cut short ({reason}): fetch the file again") from error


def require_pydicom(path: Path) -> None:
    """Imports pydicom and keeps it quiet.

    It warns of every sloppy file through the process's warning filters, which have no scope that is safe in threads,
    and logs each failed decoding with a traceback. What matters becomes an `ImageError` here.

    Raises:
        ImageError: It is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImageError(f"{path}: is DICOM, which needs an extra: pip install 'aecnn-federated[dicom]'") from error
    quiet = ("ignore", None, Warning, re.compile(_PYDICOM_MODULES), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PYDICOM_MODULES)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def read_meta(content: bytes, path: Path) -> tuple[str, int]:
    """Gives the transfer syntax of a file and where its data set begins."""
    from pydicom.filereader import read_dataset

    stream = BoundedStream(content)
    stream.seek(_DATA_AT)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP)  # noqa: FBT003
    syntax = str(value_of(meta, "TransferSyntaxUID") or "")
    if not syntax:
        raise ImageError(f"{path}: names no transfer syntax (0002,0010): export it again as a DICOM file")
    return syntax, stream.tell()


def read_elements(content: bytes, *, syntax: str, begin: int, keywords: Collection[str]) -> Elements:
    """Reads the named elements before the pixel data.

    Args:
        content: The whole file.
        syntax: Its transfer syntax.
        begin: Where its data set begins.
        keywords: Of the elements to keep.
    """
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    stream = BoundedStream(content)
    stream.seek(begin)
    found: list[tuple[int, str, int, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found.append((int(tag), vr or "", stream.tell(), length))
        return tag in _PIXEL_TAGS

    dataset = read_dataset(
        stream,
        syntax == _IMPLICIT,
        syntax != _BIG_ENDIAN,
        stop_when=at_pixels,
        specific_tags=[Tag(keyword) for keyword in keywords],
    )
    tag, vr, place, length = found[-1] if found else (0, "", len(content), 0)
    return Elements(dataset, syntax, pixel_tag=tag, pixel_vr=vr, pixels_at=place, pixels_length=length)


def shown(text: str) -> str:
    """Gives a value of the file as it appears in a message: quoted, and cut where it is very long."""
    return repr(text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…")


def value_of(dataset: "Dataset", keyword: str) -> Any:
    """Gives the first value of an element, None where it is absent or empty."""
    values = values_of(dataset, keyword)
    return values[0] if values else None


def values_of(dataset: "Dataset", keyword: str) -> list[Any]:
    """Gives the values of an element, none where it is absent or empty."""
    if keyword not in dataset:
        return []
    size = getattr(dataset.get_item(keyword), "length", 0)
    if size > MAX_VALUE_BYTES:
        raise ValueError(f"its {keyword} has {size} bytes")
    value = dataset[keyword].value
    values = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
    return [item for item in values if item is not None and item != ""]


def bytes_of(dataset: "Dataset", keyword: str) -> tuple[bytes, str]:
    """Gives the bytes of an element as the file has them, and its value representation where the file says it."""
    raw: Any = dataset.get_item(keyword)
    return bytes(raw.value or b""), str(raw.VR or "")


def first_item(elements: Elements, keyword: str) -> "Dataset | None":
    """Gives the first item of a sequence, None where there is none."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_sequence

    if keyword not in elements.dataset:
        return None
    raw: Any = elements.dataset.get_item(keyword)
    sequence = raw.value
    if isinstance(raw, RawDataElement):
        content = bytes(raw.value or b"")
        stream = BoundedStream(content)
        sequence = read_sequence(stream, raw.is_implicit_VR, raw.is_little_endian, len(content), "iso8859")
    return sequence[0] if sequence else None
