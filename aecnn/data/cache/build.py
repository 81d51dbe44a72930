"""Building and updating a cache: decode what is new or has changed, keep what is still true, remove the rest.

Every step leaves a cache that can be believed, so that a run may end anywhere and the next one goes on from there.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aecnn.config import DatasetConfig
from aecnn.data.cache.index import next_number, remove_leftovers, size_folder, size_folders
from aecnn.data.cache.lock import locked
from aecnn.data.cache.lookup import read_shards
from aecnn.data.cache.plan import plan_update, surviving, wanted_items
from aecnn.data.cache.update import Place, carry_out, forget_others, usable_shards
from aecnn.data.cache.workers import Progress
from aecnn.data.cache.write import Item
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.errors import CacheError, ManifestError
from aecnn.progress import OnProgress


@dataclass(frozen=True)
class CacheReport:
    """What a run of `build_cache` left.

    Attributes:
        folder: Where the images lie.
        num_images: Images in the cache.
        num_decoded: Of these, decoded in this run,
        num_copied: moved to another shard, because others of theirs had to go,
        num_kept: and left where they were.
        num_removed: Stored images that had changed, vanished from the table, or whose patients withdrew their consent.
        unreadable: One sentence for each image that is not in the cache.
        num_bytes: Size of the pixels on disk.
        seconds: How long it took.
    """

    folder: Path
    num_images: int
    num_decoded: int
    num_copied: int
    num_kept: int
    num_removed: int
    unreadable: tuple[str, ...]
    num_bytes: int
    seconds: float


def build_cache(
    dataset: DatasetConfig, *, size_px: int, num_workers: int, on_progress: OnProgress | None = None
) -> CacheReport:
    """Makes the cache of a dataset true to its files, or goes on where an interrupted run stopped.

    Args:
        dataset: Its images, whatever their split, are decoded into its cache folder.
        size_px: Side of the squares the images become.
        num_workers: Processes that decode. Above 1 the caller's main module must be importable (``spawn``).
        on_progress: Called now and then with the number of images dealt with and the number in all.

    Raises:
        ManifestError: The dataset is faulty, or has unreadable images and `dataset.on_unreadable` is ``refuse``; what
            could be decoded is in the cache all the same.
        CacheError: Another run is at work there, the disk is full or cannot be written to.
    """
    manifest = read_manifest(dataset)
    folder = size_folder(dataset, manifest.root, size_px=size_px)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent, exclusive=True):
            report = _update(Place(folder, size_px, dataset.files, num_workers), manifest, dataset, on_progress)
    except OSError as error:
        raise CacheError(
            f"{folder}: cannot be written ({error.strerror or error}): make room or get the right to write there, or "
            "set data.cache_folder to another place; what was finished is kept"
        ) from error
    if report.unreadable and (dataset.on_unreadable == "refuse" or not report.num_images):
        raise ManifestError(manifest.root, report.unreadable)
    return report


def _update(place: Place, manifest: Manifest, dataset: DatasetConfig, on_progress: OnProgress | None) -> CacheReport:
    begin = time.perf_counter()
    items = wanted_items(manifest)
    progress = Progress(len(items), on_progress)
    remove_leftovers(place.folder)
    if dataset.cache_folder is not None:
        _refuse_other_dataset(dataset.cache_folder, items)
    shards = usable_shards(place)
    forget_others(place, items)
    found = surviving(shards, items, on_images=progress.add)
    plan = plan_update(
        found,
        items,
        size_px=place.size_px,
        first_number=next_number(place.folder),
        num_workers=place.num_workers,
    )
    num_kept = sum(item.num_true for item in plan.kept)
    progress.go_to(num_kept)
    written = carry_out(plan, place, on_images=progress.add)
    num_stored, num_copied = (sum(len(shard.entries) for shard in written), sum(shard.num_copied for shard in written))
    return CacheReport(
        folder=place.folder,
        num_images=num_kept + num_stored,
        num_decoded=num_stored - num_copied,
        num_copied=num_copied,
        num_kept=num_kept,
        num_removed=sum(len(item.entries) - item.num_true for item in found),
        unreadable=tuple(problem for shard in written for problem in shard.problems),
        num_bytes=(num_kept + num_stored) * place.size_px**2,
        seconds=time.perf_counter() - begin,
    )


def _refuse_other_dataset(cache: Path, items: Mapping[str, Item]) -> None:
    """Refuses a place that another dataset uses: what does not belong to this one would be removed there."""
    for folder, size_px in size_folders(cache).items():
        shards, _ = read_shards(folder, size_px=size_px)
        if shards and not any(entry.image in items for shard in shards for entry in shard.entries):
            raise CacheError(
                f"{folder} holds none of this dataset's images, but others: set data.cache_folder to another folder, "
                "or remove this one"
            )
