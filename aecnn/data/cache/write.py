"""One shard, from files or from an older shard: the work of one process. Imports nothing heavy."""

import hashlib
import os
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aecnn.config import FilesConfig
from aecnn.data.cache.index import PARTIAL_PREFIX, Entry, FileState, pixels_file, write_pixels_header
from aecnn.data.images import decode_content, read_file
from aecnn.errors import ImageError
from aecnn.progress import OnImages


class Stored(NamedTuple):
    """Where an image lies decoded already."""

    pixels_file: Path
    offset_bytes: int
    entry: Entry


class Item(NamedTuple):
    """An image to store.

    Attributes:
        image: Its name in the manifest.
        patient: Whose it is.
        findings: [14] as in `Entry`.
        path: Its file.
        source: The same relative to the dataset's folder.
        stored: Its decoded form, if there is a true one.
    """

    image: str
    patient: str
    findings: tuple[str, ...]
    path: str
    source: str
    stored: Stored | None = None


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        number: A number without files.
        items: Its images.
        replaces: The shards that go once it is there.
    """

    number: int
    items: tuple[Item, ...]
    replaces: tuple[int, ...] = ()


@dataclass(frozen=True)
class WrittenShard:
    """A shard's pixels in a file that has not got its name yet.

    Attributes:
        task: What was asked for.
        partial: The file, None where no image could be read.
        entries: One for each image in it.
        num_copied: How many of them came from an older shard.
        problems: One sentence for each image that could not be read.
    """

    task: ShardTask
    partial: Path | None
    entries: tuple[Entry, ...]
    num_copied: int
    problems: tuple[str, ...]


def write_shard(
    task: ShardTask, on_images: OnImages, *, folder: Path, size_px: int, files: FilesConfig
) -> WrittenShard:
    """Decodes or copies the images of a shard into a partial file.

    Raises:
        OSError: The file cannot be written; nothing of it stays.
    """
    # The process's number keeps a process whose parent was killed from touching the file of its successor.
    partial = folder / f"{PARTIAL_PREFIX}{os.getpid()}-{pixels_file(folder, task.number).name}"
    entries: list[Entry] = []
    problems: list[str] = []
    num_copied = 0
    with ExitStack() as undo:
        undo.callback(partial.unlink, missing_ok=True)
        with partial.open("wb") as file:
            write_pixels_header(file, (len(task.items), size_px, size_px))
            # Written a quarter faster than a file that grows, and a full disk shows before anything is decoded.
            os.posix_fallocate(file.fileno(), 0, file.tell() + len(task.items) * size_px**2)
            for item in task.items:
                try:
                    entry, pixels, is_copy = _pixels_of(item, size_px=size_px, files=files)
                except ImageError as error:
                    problems.append(str(error))
                else:
                    file.write(pixels)
                    entries.append(entry)
                    num_copied += is_copy
                on_images(1)
            file.truncate()
            file.seek(0)
            write_pixels_header(file, (len(entries), size_px, size_px))
        if entries:
            undo.pop_all()
    return WrittenShard(task, partial if entries else None, tuple(entries), num_copied, tuple(problems))


def _pixels_of(item: Item, *, size_px: int, files: FilesConfig) -> tuple[Entry, "bytes | memoryview", bool]:
    if item.stored is not None:
        pixels = read_pixels(item.stored, num_bytes=size_px**2)
        if crc32(pixels) == item.stored.entry.pixels_crc32:  # what has rotted on disk is decoded again
            return item.stored.entry._replace(patient=item.patient, findings=item.findings), pixels, True
    state = file_state(item.path)
    content = read_file(Path(item.path))
    decoded = decode_content(content, Path(item.path), size_px=size_px, files=files)
    if state is None or state != file_state(item.path):
        raise ImageError(f"{item.path}: changed while it was read: run the command again")
    square: npt.NDArray[np.uint8] = np.ascontiguousarray(decoded)
    entry = Entry(item.image, item.patient, item.findings, item.source, state, sha256(content), crc32(square.data))
    return entry, square.data, False


def read_pixels(stored: Stored, *, num_bytes: int) -> bytes:
    """Gives the bytes of one image of a shard; fewer where the file ends early."""
    with stored.pixels_file.open("rb") as file:
        file.seek(stored.offset_bytes)
        return file.read(num_bytes)


def file_state(path: str) -> FileState | None:
    """Gives a file's size and time of change, None where it cannot be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns)


def crc32(pixels: "bytes | memoryview") -> str:
    """Gives the CRC-32 of some bytes, in hexadecimal digits."""
    return f"{zlib.crc32(pixels):08x}"


def sha256(content: bytes) -> str:
    """Gives the SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
