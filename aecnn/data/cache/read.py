"""Batches from a cache: gathered from files that lie in memory as far as the operating system keeps them there.

Shapes: B images of a batch, N of a manifest, S their side in pixels.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch

from aecnn.config import DatasetConfig
from aecnn.data.buffer import room_for
from aecnn.data.cache.index import size_folder
from aecnn.data.cache.lock import locked
from aecnn.data.cache.lookup import ADVICE, IntArray, Located, locate, nowhere
from aecnn.data.manifest import Manifest
from aecnn.errors import CacheError

if TYPE_CHECKING:
    from aecnn.data.source import ImageSource


class MappedShard:
    """A shard's pixels, mapped into memory.

    The file of a shard that an update removes stays for as long as it is mapped, so a training goes on undisturbed.
    """

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self.images: npt.NDArray[np.uint8] = np.asarray(mapped)  # [n, S, S]
        self._memory: mmap.mmap = mapped.base
        self._offset_bytes: int = mapped.offset

    def fetch(self, row: int) -> None:
        """Has the operating system start reading an image that is not in memory; does not wait for it.

        Told of a whole batch at once, a disk answers six times sooner than when each page is asked for on its turn.
        """
        begin = self._offset_bytes + row * self.images[0].nbytes
        page = begin - begin % mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_WILLNEED, page, begin - page + self.images[0].nbytes)


# Hospitals simulated in one process have one cache: each shard is opened once, and closed after its last reader.
_mapped_shards: WeakValueDictionary[tuple[Path, int, int, int], MappedShard] = WeakValueDictionary()


def open_cache(manifest: Manifest, dataset: DatasetConfig, *, size_px: int) -> tuple[tuple[MappedShard, ...], Located]:
    """Finds the images of a manifest in the cache of their dataset, and opens their shards, while nobody changes it.

    Returns:
        The shards, and where in them the images are; nowhere, with a warning, while somebody changes the cache.
    """
    folder = size_folder(dataset, manifest.root, size_px=size_px)
    if not dataset.use_cache:
        return (), nowhere(manifest)
    try:
        if not folder.is_dir():
            return (), nowhere(manifest)
        with locked(folder.parent, exclusive=False):
            return map_shards(locate(manifest, dataset, size_px=size_px))
    except CacheError as error:
        return (), nowhere(manifest, f"the cache is not used, and the images are decoded: {error}")
    except OSError as error:
        sentence = f"the cache {folder} is not used, because it cannot be read ({error.strerror or error})"
        return (), nowhere(manifest, f"{sentence}: get the right to read it, or set data.cache_folder to another place")


def map_shards(located: Located) -> tuple[tuple[MappedShard, ...], Located]:
    """Opens the shards that hold images of a manifest.

    Returns:
        The shards, and where in them the images are; those in shards that cannot be opened are nowhere.
    """
    mapped: list[MappedShard] = []
    new_position = np.full(len(located.shards) + 1, -1, dtype=np.int64)  # the last one is that of -1
    warnings = list(located.warnings)
    for position in np.unique(located.shard[located.shard >= 0]).tolist():
        shard = located.shards[position]
        path = shard.pixels_file
        try:
            opened = _map_once(path)
            if opened.images.shape != (len(shard.entries), shard.size_px, shard.size_px):
                raise ValueError("it is not the file that its index describes")
            mapped.append(opened)
            new_position[position] = len(mapped) - 1
        except (OSError, ValueError) as error:
            warnings.append(f"{path}: cannot be opened ({error}): {ADVICE}")
    return tuple(mapped), replace(located, shard=new_position[located.shard], warnings=tuple(warnings))


def _map_once(path: Path) -> MappedShard:
    status = path.stat()
    key = (path, status.st_ino, status.st_mtime_ns, status.st_size)  # an update may use a name again
    shard = _mapped_shards.get(key)
    if shard is None:
        shard = _mapped_shards[key] = MappedShard(path)
    return shard


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Images from a cache, and from elsewhere those that it does not hold.

    Attributes:
        shards: Open shards.
        shard: [N] position in `shards`, -1 for images from elsewhere.
        row: [N] row in the shard, or in `others`.
        others: The images from elsewhere.
    """

    shards: Sequence[MappedShard]
    shard: IntArray  # [N]
    row: IntArray  # [N]
    others: "ImageSource"

    @property
    def size_px(self) -> int:
        """Side of every image, in pixels."""
        return self.others.size_px

    def __len__(self) -> int:
        return len(self.row)

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives [B, 1, S, S] images, copied; see `ImageSource`."""
        batch = room_for(len(rows), self.size_px, out)
        shard, row = self.shard[rows], self.row[rows]
        pixels = batch.numpy()[:, 0]  # [B, S, S]
        stored = np.flatnonzero(shard >= 0)
        places = [(place, self.shards[shard[place]], int(row[place])) for place in stored.tolist()]
        for _, mapped, number in places:
            mapped.fetch(number)
        if len(stored) < len(rows):
            elsewhere = np.flatnonzero(shard < 0)
            pixels[elsewhere] = self.others.read(row[elsewhere]).numpy()[:, 0]
        for place, mapped, number in places:
            np.copyto(pixels[place], mapped.images[number])
        return batch
