"""Building and updating a cache: decode what is new or has changed, keep what is still true, remove the rest.

Every step leaves a cache that can be believed, so that a run may end anywhere and the next one goes on from there.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from aecnn.config import DatasetConfig
from aecnn.data.cache.index import make_folder, next_number, remove_leftovers, size_folder, size_folders
from aecnn.data.cache.lock import locked
from aecnn.data.cache.lookup import read_shards
from aecnn.data.cache.plan import plan_update, surviving, wanted_items
from aecnn.data.cache.update import Place, carry_out, forget_others, forget_patients, usable_shards
from aecnn.data.cache.workers import Progress
from aecnn.data.cache.write import Item
from aecnn.data.consent import withdrawn_patients
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.errors import CacheError, ManifestError
from aecnn.progress import OnProgress

log = logging.getLogger(__name__)


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
        warnings: Of the lists of withdrawn patients.
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
    warnings: tuple[str, ...] = ()


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
            could be decoded is in the cache all the same, and nothing of patients who withdrew their consent.
        CacheError: Another run is at work there, the disk is full or cannot be written to.
    """
    try:
        manifest = read_manifest(dataset)
    except ManifestError as error:
        _forget_withdrawn(dataset, error)
        raise
    folder = size_folder(dataset, manifest.root, size_px=size_px)
    try:
        make_folder(folder)
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


def _forget_withdrawn(dataset: DatasetConfig, fault: ManifestError) -> None:
    """Removes withdrawn patients from the cache of a faulty dataset; failing at that is one more fault."""
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    cache = size_folder(dataset, root, size_px=1).parent
    try:
        withdrawn = withdrawn_patients(dataset)
    except ManifestError:  # is among the faults
        return
    try:
        if not withdrawn or not cache.is_dir():
            return
        with locked(cache, exclusive=True):
            num_removed = forget_patients(cache, withdrawn, root=root, files=dataset.files)
    except (CacheError, OSError) as error:
        sentence = f"{cache} may still hold images of patients who withdrew their consent: {error}"
        raise ManifestError(fault.subject, [sentence, *fault.faults]) from error
    if num_removed:
        log.warning("%s: %d stored images of withdrawn patients were removed", cache, num_removed)


def _update(place: Place, manifest: Manifest, dataset: DatasetConfig, on_progress: OnProgress | None) -> CacheReport:
    begin = time.perf_counter()
    items = wanted_items(manifest)
    progress = Progress(len(items), on_progress)
    remove_leftovers(place.folder)
    if dataset.cache_folder is not None:
        _refuse_other_dataset(dataset.cache_folder, items, withdrawn=manifest.withdrawn_images)
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
        warnings=manifest.consent_warnings,
    )


def _refuse_other_dataset(cache: Path, items: Mapping[str, Item], *, withdrawn: Collection[str]) -> None:
    """Refuses a place that another dataset uses: what does not belong to this one would be removed there.

    Two datasets may have some names in common, and a dataset may lose some images; so half of them decide.
    """
    for folder, size_px in size_folders(cache).items():
        shards, _ = read_shards(folder, size_px=size_px)
        stored = {entry.image for shard in shards for entry in shard.entries}.difference(withdrawn)
        num_known = len(stored & items.keys())
        if 2 * num_known < len(stored):
            raise CacheError(
                f"{folder} holds {len(stored):,} images, of which {num_known:,} are in this dataset's table: set "
                "data.cache_folder to another folder if they are another dataset's, or remove this one"
            )
