"""Which images of a manifest lie decoded in its cache, true to their files as these are now."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aecnn.config import DatasetConfig
from aecnn.data.cache.index import (
    FileState,
    Shard,
    decoding,
    decoding_fault,
    read_shard,
    shard_numbers,
    size_folder,
)
from aecnn.data.cache.write import file_state
from aecnn.data.manifest import Manifest
from aecnn.errors import CacheError

IntArray = npt.NDArray[np.int64]
NUM_THREADS = 8  # a network folder answers many questions at once
ADVICE = "run `aecnn cache` again"


@dataclass(frozen=True, eq=False)
class Located:
    """Where each image of a manifest lies decoded.

    Attributes:
        shards: The shards that can be used.
        shard: [N] position in `shards`, -1 where there is no true copy.
        row: [N] row in that shard.
        usable: Whether there is a cache to speak of.
        warnings: What in the cache cannot be used, one sentence each.
    """

    shards: tuple[Shard, ...]
    shard: IntArray  # [N]
    row: IntArray  # [N]
    usable: bool
    warnings: tuple[str, ...] = ()


def nowhere(manifest: Manifest, *warnings: str) -> Located:
    """Gives the answer where there is no cache to speak of."""
    positions, places = np.full((2, len(manifest)), -1, dtype=np.int64)
    return Located((), positions, places, usable=False, warnings=warnings)


def locate(manifest: Manifest, dataset: DatasetConfig, *, size_px: int) -> Located:
    """Looks up the images of a manifest, read with its images, in the cache of their dataset.

    A copy is true where size and time of change of its file are those at decoding. Nothing else is believed: a cache
    made by another decoder, or with other settings of `dataset.files`, counts as none.
    """
    folder = size_folder(dataset, manifest.root, size_px=size_px)
    if not dataset.use_cache or not folder.is_dir():
        return nowhere(manifest)
    fault = decoding_fault(folder, decoding(size_px, dataset.files))
    if fault:
        return nowhere(manifest, f"the cache {folder} is not used, because {fault}: {ADVICE}")
    positions, places = np.full((2, len(manifest)), -1, dtype=np.int64)
    shards, faults = read_shards(folder, size_px=size_px)
    paths = manifest.table["path"].tolist()
    sources, states = relative_sources(paths, manifest.root), file_states(paths)
    row_of = {image: row for row, image in enumerate(manifest.table["image"].tolist())}
    for position, shard in enumerate(shards):
        for place, entry in enumerate(shard.entries):
            row = row_of.get(entry.image)
            if row is not None and entry.state == states[row] and entry.source == sources[row]:
                positions[row], places[row] = position, place
    warnings = tuple(f"{fault}, and is not used: {ADVICE}" for fault in faults)
    return Located(tuple(shards), positions, places, usable=True, warnings=warnings)


def read_shards(folder: Path, *, size_px: int) -> tuple[list[Shard], list[str]]:
    """Gives the shards in order, oldest first, and one sentence for each damaged one."""
    shards: list[Shard] = []
    faults: list[str] = []
    for number in shard_numbers(folder):
        try:
            shards.append(read_shard(folder, number, size_px=size_px))
        except CacheError as error:
            faults.append(str(error))
    return shards, faults


def relative_sources(paths: Sequence[str], root: Path) -> list[str]:
    """Gives paths as seen from the dataset's folder, so that a cache moves with its dataset."""
    prefix = os.path.join(root, "")
    return [path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root) for path in paths]


def file_states(paths: Sequence[str]) -> list[FileState | None]:
    """Asks for the states of files, several at once."""
    step = -(-len(paths) // NUM_THREADS) or 1
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        parts = threads.map(_states, (paths[start : start + step] for start in range(0, len(paths), step)))
        return list(_joined(parts))


def _states(paths: Sequence[str]) -> list[FileState | None]:
    return [file_state(path) for path in paths]


def _joined(parts: Iterator[list[FileState | None]]) -> Iterator[FileState | None]:
    for part in parts:
        yield from part
