"""Pixels of a manifest's rows: from the cache, else decoded once into memory where they fit, else on every read.

Shapes: B images of a batch, N of a manifest, S their side in pixels.
"""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aecnn.config import DatasetConfig, FilesConfig
from aecnn.data.buffer import room_for
from aecnn.data.cache.lookup import ADVICE, Located
from aecnn.data.cache.read import CachedImages, open_cache
from aecnn.data.images import decode_radiograph, verify_radiograph
from aecnn.data.manifest import Manifest
from aecnn.errors import ImageError, ManifestError
from aecnn.progress import OnProgress

IntArray = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 32


class ImageSource(Protocol):
    """Radiographs by row number, from wherever they are kept."""

    @property
    def size_px(self) -> int:
        """Side of every image, in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives images in the order asked for.

        Args:
            rows: [B] row numbers.
            out: [B, 1, S, S] contiguous uint8 on the CPU, to be filled and given back; None: new room.

        Returns:
            [B, 1, S, S] uint8, a copy.
        """
        ...


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Decoded images in memory.

    Attributes:
        pixels: [N, S, S] grey values.
    """

    pixels: npt.NDArray[np.uint8]  # [N, S, S]

    @property
    def size_px(self) -> int:
        """Side of every image, in pixels."""
        return int(self.pixels.shape[1])

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives [B, 1, S, S] images, copied."""
        batch = room_for(len(rows), self.size_px, out)
        copies = batch.numpy()[:, 0]
        for place, row in enumerate(rows):
            np.copyto(copies[place], self.pixels[row])  # twice as fast as np.take
        return batch


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images decoded from their files on every read, several at once.

    Attributes:
        paths: [N] image files.
        size_px: Side of every image, in pixels.
        files: What they may be.
    """

    paths: tuple[Path, ...]
    size_px: int
    files: FilesConfig

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives [B, 1, S, S] images.

        Raises:
            ImageError: A file cannot be decoded (any more).
        """
        batch = room_for(len(rows), self.size_px, out)
        decode = partial(decode_radiograph, size_px=self.size_px, files=self.files)
        for place, image in enumerate(_in_threads(decode, [self.paths[row] for row in rows])):
            batch.numpy()[place, 0] = image
        return batch


@dataclass(frozen=True, eq=False)
class SelectedImages:
    """Some rows of another source, without a copy of its pixels.

    Attributes:
        source: Where the images are kept.
        rows: [N] their row numbers there.
    """

    source: ImageSource
    rows: IntArray  # [N]

    @property
    def size_px(self) -> int:
        """Side of every image, in pixels."""
        return self.source.size_px

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives [B, 1, S, S] images; `rows` count in the selection."""
        return self.source.read(self.rows[rows], out)


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """A manifest and its images, row by row.

    Attributes:
        manifest: The rows whose images can be read.
        images: One image for each of these rows, in the same order.
        skipped: One sentence for each image left out.
        warnings: What is not as it should be, such as a withdrawn patient who is unknown or a cache that is not up to
            date; it changes no pixel.
    """

    manifest: Manifest
    images: ImageSource
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def select(self, rows: npt.ArrayLike) -> "LoadedImages":
        """Gives some rows, by a mask or by row numbers, without copying pixels; the sentences stay as they are."""
        numbers = np.arange(len(self.manifest))[np.asarray(rows)].astype(np.int64)
        return replace(self, manifest=self.manifest.select(numbers), images=SelectedImages(self.images, numbers))


def load_images(
    manifest: Manifest, dataset: DatasetConfig, *, size_px: int, on_progress: OnProgress | None = None
) -> LoadedImages:
    """Finds the images of a manifest: in the cache, where it is true to their files; the others are decoded.

    Decoded images are kept in memory where they fit. Where they do not, each file is only checked (see
    `verify_radiograph`), which is much faster, and decoded on every read. Damage that this check cannot see is then an
    `ImageError` of the read. Which way an image comes changes nothing about its pixels.

    Args:
        manifest: Rows of the dataset, read with its images.
        dataset: Its cache and memory limit, and what to do about unreadable images.
        size_px: Side of the squares the images become.
        on_progress: Called after each image that is decoded or checked, with the number done and the number in all.

    Raises:
        ManifestError: With every unreadable file, if these are refused or if nothing is left.
    """
    if manifest.table["path"].isna().any():
        raise ManifestError(manifest.root, ["the manifest was read without its images: require them when reading it"])
    shards, located = open_cache(manifest, dataset, size_px=size_px)
    absent = np.flatnonzero(located.shard < 0)
    paths = tuple(Path(manifest.table["path"].iloc[row]) for row in absent)
    pixels: npt.NDArray[np.uint8] | None = None
    if len(paths) * size_px**2 <= dataset.memory_limit_mb * 10**6:
        pixels = np.zeros((len(paths), size_px, size_px), dtype=np.uint8)
    problems = _prepare(paths, size_px=size_px, files=dataset.files, pixels=pixels, on_progress=on_progress)
    faults = tuple(problem for problem in problems if problem)
    if faults and (dataset.on_unreadable == "refuse" or len(faults) == len(manifest)):
        raise ManifestError(manifest.root, faults)
    images: ImageSource = FileImages(paths, size_px, dataset.files) if pixels is None else MemoryImages(pixels)
    if shards:
        located.row[absent] = np.arange(len(absent))
        images = CachedImages(shards, located.shard, located.row, others=images)
    warnings = (*manifest.consent_warnings, *_cache_warnings(located, num_decoded=len(paths) - len(faults)))
    loaded = LoadedImages(manifest, images, skipped=faults, warnings=warnings)
    if not faults:
        return loaded
    readable = np.full(len(manifest), fill_value=True)
    readable[absent] = [not problem for problem in problems]
    return loaded.select(readable)


def _cache_warnings(located: Located, *, num_decoded: int) -> tuple[str, ...]:
    if not located.usable or not num_decoded:
        return located.warnings
    verb = "is not in the cache or has" if num_decoded == 1 else "are not in the cache or have"
    count = f"{num_decoded:,} of {len(located.row):,} images {verb} changed: {ADVICE}"
    return (*located.warnings, count)


def refuse_unreadable(manifest: Manifest, dataset: DatasetConfig, *, size_px: int) -> None:
    """Checks every image file that the cache does not vouch for (see `verify_radiograph`), and keeps nothing.

    Raises:
        ManifestError: With every file that cannot be read.
    """
    _, located = open_cache(manifest, dataset, size_px=size_px)
    paths = tuple(Path(manifest.table["path"].iloc[row]) for row in np.flatnonzero(located.shard < 0))
    problems = _prepare(paths, size_px=size_px, files=dataset.files, pixels=None, on_progress=None)
    faults = [problem for problem in problems if problem]
    if faults:
        raise ManifestError(manifest.root, faults)


def _prepare(
    paths: Sequence[Path],
    *,
    size_px: int,
    files: FilesConfig,
    pixels: npt.NDArray[np.uint8] | None,
    on_progress: OnProgress | None,
) -> list[str]:
    """Decodes into `pixels`, or only checks where there are none; gives [N] what is wrong with each file, or ''."""

    def prepare_one(row: int) -> str:
        try:
            if pixels is None:
                verify_radiograph(paths[row], files=files)
            else:
                pixels[row] = decode_radiograph(paths[row], size_px=size_px, files=files)
        except ImageError as error:
            return str(error)
        return ""

    problems: list[str] = []
    with contextlib.closing(
        _in_threads(prepare_one, range(len(paths)))
    ) as results:  # ends the threads when interrupted
        for problem in results:
            problems.append(problem)
            if on_progress is not None:
                on_progress(len(problems), len(paths))
    return problems


def _in_threads(task: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Results in the order of the items. Pillow lets other threads run while it decodes."""
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        yield from threads.map(task, items)
