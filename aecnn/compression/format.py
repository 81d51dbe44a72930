"""The compressed file, ``.aec``: a readable header, then one record an image; `docs/compression.md` shows the bytes.

A file is: eight magic bytes; the header's length (uint32); the header, JSON; a checksum; then, for each image, the
length of its name (uint16), its name, the length of its packed latent (uint32), the packed latent, a checksum. Numbers
are little-endian. Every checksum is the SHA-256 of all bytes of the file before it, so a record that was changed, left
out, moved or taken from another file does not fit. Checksums show damage; they are no signature.

What a length promises is compared with its limit and with the bytes that are left before anything is read.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pydantic import Field, ValidationError

from aecnn.compression.packing import max_packed_bytes
from aecnn.config import DOWNSCALE
from aecnn.errors import CompressedFileError
from aecnn.strict_model import StrictModel

SUFFIX = ".aec"
MAGIC = b"\x89AEC\r\n\x1a\n"  # like PNG's: not text, and damaged by whatever damages line ends
MAX_HEADER_BYTES = 65_536
MAX_NAME_BYTES = 255
MAX_SIDE_PX = 4096  # as `ImagesConfig.size_px`

_UINT16, _UINT32 = struct.Struct("<H"), struct.Struct("<I")
_CHECKSUM_BYTES = 32
_SMALLEST_RECORD = _UINT16.size + len("x.png") + _UINT32.size + 1 + _CHECKSUM_BYTES
_AGAIN = "fetch it again"


class Origin(StrictModel):
    """The model that compressed the images, as its checkpoint calls it: for people, and compared with nothing."""

    backbone: str = Field(max_length=100)
    run: str | None = Field(default=None, max_length=500)
    round: int | None = None


class Header(StrictModel):
    """What holds for all images of a file."""

    format_version: Literal[1] = 1
    packer: Literal["webp-lossless"] = "webp-lossless"  # see `aecnn.compression.packing`
    decoder: str = Field(pattern=r"^[0-9a-f]{64}$")  # fingerprint of the one decoder that rebuilds the images
    origin: Origin
    image_size_px: int = Field(ge=16, le=MAX_SIDE_PX, multiple_of=DOWNSCALE)
    num_images: int = Field(ge=1, le=2**32)

    @property
    def latent_size_px(self) -> int:
        """Side of every latent."""
        return self.image_size_px // DOWNSCALE


class Record(NamedTuple):
    """One image of a file."""

    name: str  # of the PNG it becomes
    packed: bytes  # its latent


def name_fault(name: str) -> str:
    """Gives why a name may not be in a file, or an empty text: it must name a PNG in any folder and leave none."""
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"{name[:40]!r}… is longer than {MAX_NAME_BYTES} bytes"
    if not name.endswith(".png") or name.startswith(".") or not name.isprintable() or {"/", "\\", ":"} & set(name):
        return f"{name!r} is no plain name of a PNG"
    return ""


def write_compressed(path: Path, header: Header, records: Iterable[Record]) -> int:
    """Writes a file, whole or not at all, and gives its bytes; a file of this name is replaced.

    Args:
        path: Where to.
        header: Its `num_images` is how many records follow.
        records: Taken one at a time; their names differ, also in lower case.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            writer = _Writer(file)
            text = header.model_dump_json().encode()
            writer.write(MAGIC, _UINT32.pack(len(text)), text)
            writer.write_checksum()
            for record in records:
                name = record.name.encode()
                writer.write(_UINT16.pack(len(name)), name, _UINT32.pack(len(record.packed)), record.packed)
                writer.write_checksum()
            num_bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CompressedFileError(path, [f"cannot be written ({error.strerror or error})"]) from error
    finally:
        partial.unlink(missing_ok=True)
    return num_bytes


@contextmanager
def open_compressed(path: Path) -> Iterator[tuple[Header, Iterator[Record]]]:
    """Opens a file: gives its header, checked, and its records, each checked when it is taken.

    Raises:
        CompressedFileError: It is no such file, of another version, damaged, cut short, or lies about itself.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe waits for its writer, perhaps forever
            raise CompressedFileError(path, [f"is no ordinary file: give the path of a {SUFFIX} file"])
        file = path.open("rb")
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}): give the path of a {SUFFIX} file"
        raise CompressedFileError(path, [reason]) from error
    with file:
        reader = _Reader(path, file, os.fstat(file.fileno()).st_size)
        header = _read_header(reader)
        yield header, _read_records(reader, header)


@dataclass
class _Writer:
    file: BinaryIO
    checksum: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, *parts: bytes) -> None:
        for part in parts:
            self.file.write(part)
            self.checksum.update(part)

    def write_checksum(self) -> None:
        self.write(self.checksum.digest())


@dataclass
class _Reader:
    path: Path
    file: BinaryIO
    num_left: int  # bytes
    checksum: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def read(self, num_bytes: int, what: str) -> bytes:
        """The next bytes, which a limit was set for by the caller."""
        if num_bytes > self.num_left:
            raise self.fault(f"is cut short: {what} needs {num_bytes} bytes, and {self.num_left} are left: {_AGAIN}")
        part = self.file.read(num_bytes)
        if len(part) != num_bytes:
            raise self.fault(f"became shorter while it was read, at {what}: try again when it is written to the end")
        self.num_left -= num_bytes
        self.checksum.update(part)
        return part

    def read_checksum(self, what: str) -> None:
        expected = self.checksum.digest()
        if self.read(_CHECKSUM_BYTES, f"the checksum of {what}") != expected:
            raise self.fault(f"is damaged: the checksum after {what} does not fit the bytes before it: {_AGAIN}")

    def fault(self, sentence: str) -> CompressedFileError:
        return CompressedFileError(self.path, [sentence])


def _read_header(reader: _Reader) -> Header:
    start = reader.read(min(len(MAGIC), reader.num_left), "its first bytes")
    if start != MAGIC:
        remedy = f"give a {SUFFIX} file, as aecnn compress writes it"
        raise reader.fault(f"is no compressed file of ours (starts with {start!r}): {remedy}")
    (length,) = _UINT32.unpack(reader.read(_UINT32.size, "the length of its header"))
    if not 0 < length <= MAX_HEADER_BYTES:
        raise reader.fault(f"says that its header has {length} bytes, accepted are 1 to {MAX_HEADER_BYTES}: {_AGAIN}")
    text = reader.read(length, "its header")
    reader.read_checksum("its header")
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        found = [(".".join(map(str, it["loc"])) or "all", it["msg"], it["input"]) for it in error.errors()]
        remedy = "compress the images again, or update aecnn"
        faults = [f"{key} in its header: {why} (found {value!r:.80}): {remedy}" for key, why, value in found]
        raise CompressedFileError(reader.path, faults) from error
    if header.num_images * _SMALLEST_RECORD > reader.num_left:
        told = f"says that it holds {header.num_images} images, and {reader.num_left} bytes are left for them"
        raise reader.fault(f"{told}: {_AGAIN}")
    return header


def _read_records(reader: _Reader, header: Header) -> Iterator[Record]:
    seen: set[str] = set()
    limit = max_packed_bytes(header.latent_size_px)
    for number in range(1, header.num_images + 1):
        what = f"image {number} of {header.num_images}"
        (name_length,) = _UINT16.unpack(reader.read(_UINT16.size, f"the name of {what}"))
        if not 0 < name_length <= MAX_NAME_BYTES:
            raise reader.fault(f"says that the name of {what} has {name_length} bytes, accepted are 1 to 255: {_AGAIN}")
        name = _checked_name(reader, reader.read(name_length, f"the name of {what}"), what)
        (length,) = _UINT32.unpack(reader.read(_UINT32.size, f"the size of {what}"))
        if not 0 < length <= limit:
            raise reader.fault(f"says that {what} has {length} bytes, accepted are 1 to {limit}: {_AGAIN}")
        packed = reader.read(length, what)
        reader.read_checksum(what)
        if name.casefold() in seen:
            raise reader.fault(f"holds two images named {name!r}: compress them again under names that differ")
        seen.add(name.casefold())
        yield Record(name, packed)
    if reader.num_left:
        raise reader.fault(f"goes on for {reader.num_left} bytes after its last image: {_AGAIN}")


def _checked_name(reader: _Reader, raw: bytes, what: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise reader.fault(f"the name of {what} is no UTF-8 ({raw!r}): {_AGAIN}") from error
    fault = name_fault(name)
    if fault:
        raise reader.fault(f"the name of {what}: {fault}; nothing is written under such a name")
    return name
