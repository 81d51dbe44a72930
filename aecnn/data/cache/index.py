"""What lies in a cache of decoded radiographs, and how it is put there whole or not at all.

::

    aecnn-cache/lock                     held by the one process that may change the cache, or by those that open it
    aecnn-cache/1024px/cache.json        how the images were decoded
    aecnn-cache/1024px/shard-00007.npy   uint8 [n, S, S]
    aecnn-cache/1024px/shard-00007.csv   one line an image, in the same order: whose, from which file, its hashes

A shard's pixels never change. Its index is put in place last and makes it count: pixels without an index are what an
interrupted run left. Patients and findings in the index are for a person who looks; training takes both from the
manifest.

The folders are made for their owner alone (0700): what lies in them are patients' X-rays, under their ids.

A file is known again by its SHA-256. Pixels that rotted on disk show in a CRC-32, which takes less than half the time
and protects no less: whoever can change the pixels can change the index beside them.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from aecnn.config import DatasetConfig, FilesConfig
from aecnn.data.images import DECODER_VERSION
from aecnn.errors import CacheError
from aecnn.findings import FINDINGS

VERSION = 1  # of this layout
FOLDER_NAME = "aecnn-cache"
FORMAT_NAME = "cache.json"
LOCK_NAME = "lock"
PARTIAL_PREFIX = ".partial-"
_SOURCE_COLUMNS = ("source", "source_bytes", "source_mtime_ns", "source_sha256")
COLUMNS = ("image", "patient", *FINDINGS, *_SOURCE_COLUMNS, "pixels_crc32")
_SHARD_NAME = re.compile(r"shard-(\d{5,})\.(npy|csv)")
_SIZE_NAME = re.compile(r"(\d+)px")
_CRC32_DIGITS = 8


class FileState(NamedTuple):
    """What a file's directory entry tells about its content without reading it."""

    num_bytes: int
    mtime_ns: int


class Entry(NamedTuple):
    """One image of a shard."""

    image: str
    patient: str
    findings: tuple[str, ...]  # [14] 1, 0 or empty
    source: str  # relative to the dataset's folder
    state: FileState  # of the source when it was read
    source_sha256: str
    pixels_crc32: str


@dataclass(frozen=True)
class Shard:
    """A shard whose index and size are in order.

    Attributes:
        folder: Where it lies.
        number: It names the files.
        size_px: Side of its images.
        offset_bytes: Where the first image begins in the file of pixels.
        entries: One for each image, in order.
    """

    folder: Path
    number: int
    size_px: int
    offset_bytes: int
    entries: tuple[Entry, ...]

    @property
    def pixels_file(self) -> Path:
        """The images."""
        return pixels_file(self.folder, self.number)

    def place(self, row: int) -> tuple[Path, int]:
        """Gives the file and the offset in bytes at which an image's pixels begin."""
        return self.pixels_file, self.offset_bytes + row * self.size_px**2


def size_folder(dataset: DatasetConfig, root: Path, *, size_px: int) -> Path:
    """Gives the place of the images of one size; `root` is the manifest's folder."""
    return (dataset.cache_folder or root / FOLDER_NAME) / f"{size_px}px"


def make_folder(folder: Path) -> None:
    """Makes the place of the images of one size, and the cache around it, for their owner alone."""
    cache = folder.parent
    if not cache.parent.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
    for path in (cache, folder):
        path.mkdir(mode=0o700, exist_ok=True)


def pixels_file(folder: Path, number: int) -> Path:
    """Gives the file of a shard's images."""
    return folder / f"shard-{number:05d}.npy"


def index_file(folder: Path, number: int) -> Path:
    """Gives the file of a shard's index."""
    return folder / f"shard-{number:05d}.csv"


def shard_numbers(folder: Path) -> list[int]:
    """Gives the numbers of the shards that count, whole or damaged."""
    return sorted(number for number, kind in _shard_files(folder) if kind == "csv")


def size_folders(cache: Path) -> dict[Path, int]:
    """Gives the places of all sizes in a cache, with their sides in pixels."""
    names = (_SIZE_NAME.fullmatch(name) for name in sorted(os.listdir(cache)))
    found = {cache / match[0]: int(match[1]) for match in names if match}
    return {folder: size_px for folder, size_px in found.items() if folder.is_dir()}


def next_number(folder: Path) -> int:
    """Gives a number that no file of the folder has."""
    return max((number for number, _ in _shard_files(folder)), default=-1) + 1


def _shard_files(folder: Path) -> list[tuple[int, str]]:
    names = (_SHARD_NAME.fullmatch(name) for name in os.listdir(folder))
    return [(int(match[1]), match[2]) for match in names if match]


def remove_leftovers(folder: Path) -> None:
    """Removes what an interrupted run left: files half written, and pixels without an index."""
    counting = set(shard_numbers(folder))
    for name in os.listdir(folder):
        match = _SHARD_NAME.fullmatch(name)
        if name.startswith(PARTIAL_PREFIX) or (match and int(match[1]) not in counting):
            (folder / name).unlink()


def remove_shard(folder: Path, number: int) -> None:
    """Removes a shard; once its index is gone it does not count any more."""
    index_file(folder, number).unlink()
    pixels_file(folder, number).unlink(missing_ok=True)
    sync_folder(folder)


def read_shard(folder: Path, number: int, *, size_px: int) -> Shard:
    """Reads a shard's index, and checks that its file of pixels has the size the index says.

    Raises:
        CacheError: The shard is damaged.
    """
    path = index_file(folder, number)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != COLUMNS:
            raise ValueError("has other columns")
        entries = tuple(_entry(line) for line in lines)
        offset_bytes = _check_pixels(pixels_file(folder, number), (len(entries), size_px, size_px))
    except (OSError, ValueError, csv.Error) as error:
        raise CacheError(f"{path.with_suffix('')}: is damaged ({error})") from error
    return Shard(folder, number, size_px, offset_bytes, entries)


def _entry(line: list[str]) -> Entry:
    if len(line) != len(COLUMNS) or len(line[-1]) != _CRC32_DIGITS:
        raise ValueError(f"a line of the index is cut short: {','.join(line)[:60]}")
    state = FileState(int(line[-4]), int(line[-3]))
    return Entry(line[0], line[1], tuple(line[2:-5]), line[-5], state, line[-2], line[-1])


def _check_pixels(path: Path, shape: tuple[int, ...]) -> int:
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("the .npy file has another version")
        found, column_order, dtype = np.lib.format.read_array_header_1_0(file)
        offset, size = file.tell(), file.seek(0, os.SEEK_END)
    if found != shape or column_order or dtype != np.uint8:
        raise ValueError(f"the .npy file holds {dtype} {list(found)}, expected uint8 {list(shape)}")
    if size != offset + int(np.prod(shape)):
        raise ValueError(f"the .npy file has {size:,} bytes, expected {offset + int(np.prod(shape)):,}")
    return offset


def write_pixels_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Writes what stands before the pixels; it has the same length for any number of images."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def write_index(folder: Path, number: int, entries: Sequence[Entry]) -> None:
    """Puts a shard's index in place, on disk before this returns."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(COLUMNS)
            lines.writerows(
                (e.image, e.patient, *e.findings, e.source, *e.state, e.source_sha256, e.pixels_crc32) for e in entries
            )

    _write_whole(index_file(folder, number), write)


def decoding(size_px: int, files: FilesConfig) -> dict[str, Any]:
    """Gives what decides a pixel's value besides the file: `cache.json`."""
    return {
        "version": VERSION,
        "size_px": size_px,
        "decoder_version": DECODER_VERSION,
        "files": files.model_dump(mode="json"),
    }


def write_decoding(folder: Path, document: dict[str, Any]) -> None:
    """Puts `cache.json` in place."""
    text = json.dumps(document, indent=2) + "\n"
    _write_whole(folder / FORMAT_NAME, lambda partial: partial.write_text(text, encoding="utf-8"))


def decoding_fault(folder: Path, wanted: dict[str, Any]) -> str:
    """Gives why a cache's images are not those wanted, or an empty text."""
    path = folder / FORMAT_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error})"
    if not isinstance(found, dict):
        return f"{path} holds no keys and values"
    other = [f"{key} {found.get(key)} (now {value})" for key, value in wanted.items() if found.get(key) != value]
    return f"it was made with {', '.join(other)}" if other else ""


def put_in_place(partial: Path, path: Path) -> None:
    """Gives a finished file its name, once its content is on disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names of a folder's files to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
    write(partial)
    put_in_place(partial, path)
