"""Image files opened one by one, by several processes: readable or not, how they are stored, and what they look like.

Nothing of PyTorch is imported here, so that the processes start fast.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from aecnn.config import FilesConfig
from aecnn.data.check.radiographs import THUMBNAIL_SIDE_PX
from aecnn.data.images import open_content, read_file, square_and_scale
from aecnn.errors import ImageError

HASH_SIDE = 16  # 256 bits: at 64, different patients' radiographs are as near to each other as copies are
CHUNK = 16  # files a task: 1 MB of thumbnails
_AHEAD = 4  # tasks waiting for each process


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What one image file is.

    Attributes:
        fault: Why it cannot be used, or ''; then all else is empty.
        storage: Format, mode and bits, such as ``PNG L 8 bit``.
        bits: Of the file's values.
        bits_used: Bits that its values need.
        width_px: Of the picture.
        height_px: Of the picture.
        sha256: Of the file.
        phash: [256] bits of the perceptual hash (``imagehash.phash``).
        thumbnail: [256, 256] the picture in small, with black borders where it is not square.
    """

    fault: str
    storage: str = ""
    bits: int = 0
    bits_used: int = 0
    width_px: int = 0
    height_px: int = 0
    sha256: str = ""
    phash: npt.NDArray[np.bool_] | None = None  # [256]
    thumbnail: npt.NDArray[np.uint8] | None = None  # [256, 256]


def examine_file(path: Path, *, files: FilesConfig) -> FileFacts:
    """Reads, decodes and describes one file; never raises for what is in it."""
    try:
        content = read_file(path)
        radiograph = open_content(content, path, files=files)
    except ImageError as error:
        return FileFacts(fault=str(error))
    height, width = radiograph.grey.shape
    thumbnail = square_and_scale(radiograph.grey, size_px=THUMBNAIL_SIDE_PX)
    return FileFacts(
        fault="",
        storage=f"{radiograph.format} {radiograph.mode}, {radiograph.bits} bit",
        bits=radiograph.bits,
        bits_used=radiograph.bits_used,
        width_px=width,
        height_px=height,
        sha256=hashlib.sha256(content).hexdigest(),
        phash=imagehash.phash(Image.fromarray(thumbnail), hash_size=HASH_SIDE).hash.ravel(),
        thumbnail=thumbnail,
    )


def examine_files(
    paths: Sequence[Path], *, files: FilesConfig, num_workers: int
) -> Generator[list[FileFacts], None, None]:
    """Yields the facts of `CHUNK` files at a time, in the order of the paths, so that memory stays small.

    Args:
        paths: [N] image files.
        files: What is accepted.
        num_workers: Processes; above 1 the caller's main module must be importable (``spawn``).
    """
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    work = partial(_examine_chunk, files=files)
    if num_workers == 1 or len(chunks) < 2:
        yield from map(work, chunks)
        return
    pool = ProcessPoolExecutor(min(num_workers, len(chunks)), mp_context=get_context("spawn"))
    waiting: deque[Future[list[FileFacts]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > num_workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops asking
        pool.shutdown(cancel_futures=True)


def _examine_chunk(paths: Sequence[Path], *, files: FilesConfig) -> list[FileFacts]:
    return [examine_file(path, files=files) for path in paths]
