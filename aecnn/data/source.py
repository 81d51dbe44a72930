"""Pixels of a manifest's rows: decoded once into memory where they fit, else again on every read.

Shapes: B images of a batch, N of a manifest, S their side in pixels.
"""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aecnn.config import OnUnreadable
from aecnn.data.images import decode_radiograph, verify_radiograph
from aecnn.data.manifest import Manifest
from aecnn.errors import ImageError, ManifestError

IntArray = npt.NDArray[np.int64]
OnProgress = Callable[[int, int], None]  # (images done, images in all)
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

    def read(self, rows: IntArray) -> torch.Tensor:
        """Gives images in the order asked for.

        Args:
            rows: [B] row numbers.

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

    def read(self, rows: IntArray) -> torch.Tensor:
        """Gives [B, 1, S, S] images, copied."""
        return torch.from_numpy(self.pixels[np.asarray(rows, dtype=np.int64)]).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images decoded from their files on every read, several at once.

    Attributes:
        paths: [N] image files.
        size_px: Side of every image, in pixels.
    """

    paths: tuple[Path, ...]
    size_px: int

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: IntArray) -> torch.Tensor:
        """Gives [B, 1, S, S] images.

        Raises:
            ImageError: A file cannot be decoded (any more).
        """
        paths = [self.paths[row] for row in rows]
        pixels = np.empty((len(paths), self.size_px, self.size_px), dtype=np.uint8)
        for index, image in enumerate(_in_threads(lambda path: decode_radiograph(path, size_px=self.size_px), paths)):
            pixels[index] = image
        return torch.from_numpy(pixels).unsqueeze(1)


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

    def read(self, rows: IntArray) -> torch.Tensor:
        """Gives [B, 1, S, S] images; `rows` count in the selection."""
        return self.source.read(self.rows[np.asarray(rows, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """A manifest and its images, row by row.

    Attributes:
        manifest: The rows whose images can be read.
        images: One image for each of these rows, in the same order.
        skipped: One sentence for each image left out.
    """

    manifest: Manifest
    images: ImageSource
    skipped: tuple[str, ...] = ()

    def select(self, rows: npt.ArrayLike) -> "LoadedImages":
        """Gives some rows, by a mask or by row numbers, without copying pixels; `skipped` stays as it is."""
        numbers = np.arange(len(self.manifest))[np.asarray(rows)].astype(np.int64)
        return LoadedImages(
            manifest=self.manifest.select(numbers),
            images=SelectedImages(self.images, numbers),
            skipped=self.skipped,
        )


def load_images(
    manifest: Manifest,
    *,
    size_px: int,
    on_unreadable: OnUnreadable,
    memory_limit_mb: int = 8192,
    on_progress: OnProgress | None = None,
) -> LoadedImages:
    """Decodes the images of a manifest in parallel, and keeps them in memory where they fit.

    Where they do not fit, each file is only checked (see `verify_radiograph`), which is much faster than decoding, and
    decoded on every read. Damage that this check cannot see is then an `ImageError` of the read.

    Args:
        manifest: Read with its images.
        size_px: Side of the squares the images become.
        on_unreadable: ``refuse`` the dataset, or ``skip`` the unreadable images and report them.
        memory_limit_mb: How much the decoded images may take, in units of 10⁶ bytes.
        on_progress: Called after each image with the number done and the number in all.

    Raises:
        ManifestError: With every unreadable file, if these are refused or if nothing is left.
    """
    if manifest.table["path"].isna().any():
        raise ManifestError(manifest.root, ["the manifest was read without its images: require them when reading it"])
    paths = tuple(Path(path) for path in manifest.table["path"])
    pixels: npt.NDArray[np.uint8] | None = None
    if len(paths) * size_px**2 <= memory_limit_mb * 10**6:
        pixels = np.zeros((len(paths), size_px, size_px), dtype=np.uint8)
    problems = _prepare(paths, size_px=size_px, pixels=pixels, on_progress=on_progress)
    faults = tuple(problem for problem in problems if problem)
    if faults and (on_unreadable == "refuse" or len(faults) == len(paths)):
        raise ManifestError(manifest.root, faults)
    images: ImageSource = FileImages(paths, size_px) if pixels is None else MemoryImages(pixels)
    if not faults:
        return LoadedImages(manifest, images)
    readable = np.array([not problem for problem in problems], dtype=bool)
    return LoadedImages(manifest, images, skipped=faults).select(readable)


def refuse_unreadable(manifest: Manifest) -> None:
    """Checks every image file (see `verify_radiograph`) without keeping anything.

    Raises:
        ManifestError: With every file that cannot be read.
    """
    paths = tuple(Path(path) for path in manifest.table["path"])
    faults = [problem for problem in _prepare(paths, size_px=0, pixels=None, on_progress=None) if problem]
    if faults:
        raise ManifestError(manifest.root, faults)


def _prepare(
    paths: Sequence[Path],
    *,
    size_px: int,
    pixels: npt.NDArray[np.uint8] | None,
    on_progress: OnProgress | None,
) -> list[str]:
    """Decodes into `pixels`, or only checks where there are none; gives [N] what is wrong with each file, or ''."""

    def prepare_one(row: int) -> str:
        try:
            if pixels is None:
                verify_radiograph(paths[row])
            else:
                pixels[row] = decode_radiograph(paths[row], size_px=size_px)
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
