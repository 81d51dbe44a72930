"""The steps of an update of a cache: what is removed, what is written, and in which order it reaches the disk."""

import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from aecnn.config import FilesConfig
from aecnn.data.cache import index
from aecnn.data.cache.index import Shard
from aecnn.data.cache.lookup import read_shards
from aecnn.data.cache.plan import Plan, Surviving, plan_update, without_others
from aecnn.data.cache.workers import work_off
from aecnn.data.cache.write import Item, ShardTask, WrittenShard, write_shard
from aecnn.errors import CacheError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where images of one size are stored, and how they are made."""

    folder: Path
    size_px: int
    files: FilesConfig
    num_workers: int


def usable_shards(place: Place) -> list[Shard]:
    """Reads the shards; damaged ones, and all where they were decoded otherwise, are removed."""
    wanted = index.decoding(place.size_px, place.files)
    fault = index.decoding_fault(place.folder, wanted)
    if fault:
        numbers = index.shard_numbers(place.folder)
        if numbers:
            log.warning("%s: everything is decoded again, because %s", place.folder, fault)
        for number in numbers:
            index.remove_shard(place.folder, number)
        index.write_decoding(place.folder, wanted)
    shards, faults = read_shards(place.folder, size_px=place.size_px)
    for sentence in faults:
        log.warning("%s: its images are decoded again", sentence)
    for number in set(index.shard_numbers(place.folder)) - {shard.number for shard in shards}:
        index.remove_shard(place.folder, number)
    return shards


def forget_others(place: Place, items: Mapping[str, Item]) -> None:
    """Removes what no longer belongs to the dataset from the caches of other sizes.

    Without it, the pixels of a patient who withdrew consent would stay there until that size is wanted again.
    """
    for folder, size_px in index.size_folders(place.folder.parent).items():
        if folder == place.folder:
            continue
        shards = _readable_shards(folder, size_px=size_px)
        _leave(without_others(shards, items), items, replace(place, folder=folder, size_px=size_px))


def forget_patients(cache: Path, patients: Collection[str], *, root: Path, files: FilesConfig) -> int:
    """Removes the images of some patients from the caches of all sizes, by what the indices say of them.

    Needs no manifest, so that a fault in it keeps nobody's pixels who withdrew consent.

    Args:
        cache: The folder of all sizes.
        patients: In the spelling of `canonical_patients`.
        root: The dataset's folder.
        files: As which its images are decoded.

    Returns:
        How many stored images were removed.
    """
    num_removed = 0
    for folder, size_px in index.size_folders(cache).items():
        shards = _readable_shards(folder, size_px=size_px)
        entries = [entry for shard in shards for entry in shard.entries if entry.patient not in patients]
        items = {
            entry.image: Item(
                entry.image, entry.patient, entry.findings, os.path.join(root, entry.source), entry.source
            )
            for entry in entries
        }
        found = [
            Surviving(shard, tuple(None if entry.patient in patients else entry for entry in shard.entries))
            for shard in shards
        ]
        num_removed += sum(len(item.entries) - item.num_true for item in found)
        _leave(found, items, Place(folder, size_px, files, num_workers=1))
    return num_removed


def _readable_shards(folder: Path, *, size_px: int) -> list[Shard]:
    """Gives the shards that tell whose images they hold, and removes the others."""
    index.remove_leftovers(folder)
    shards, _ = read_shards(folder, size_px=size_px)
    for number in set(index.shard_numbers(folder)) - {shard.number for shard in shards}:
        index.remove_shard(folder, number)
    return shards


def _leave(found: Sequence[Surviving], items: Mapping[str, Item], place: Place) -> None:
    """Leaves of a cache what was found to stay, and decodes nothing."""
    if index.decoding_fault(place.folder, index.decoding(place.size_px, place.files)):
        for item in found:
            if not item.is_whole:  # whole ones stay for who decodes that way
                index.remove_shard(place.folder, item.shard.number)
        return
    plan = plan_update(
        found,
        items,
        size_px=place.size_px,
        first_number=index.next_number(place.folder),
        num_workers=place.num_workers,
        decode=False,
    )
    carry_out(plan, place, on_images=lambda _: None)


def carry_out(plan: Plan, place: Place, *, on_images: Callable[[int], None]) -> list[WrittenShard]:
    """Removes, mends, moves, and then decodes: for lack of room nobody's pixels stay who withdrew consent."""
    for number in plan.dropped:
        index.remove_shard(place.folder, number)
    for kept in plan.kept:
        if kept.is_changed:
            index.write_index(place.folder, kept.shard.number, kept.true_entries)
    return [*_write(plan.moves, place, on_images), *_write(plan.decodes, place, on_images)]


def _write(tasks: Sequence[ShardTask], place: Place, on_images: Callable[[int], None]) -> list[WrittenShard]:
    _require_space(tasks, place)
    work = partial(write_shard, folder=place.folder, size_px=place.size_px, files=place.files)
    written: list[WrittenShard] = []
    commits: list[Future[None]] = []
    try:
        # Bringing a shard to disk takes seconds: a thread waits for it while the workers decode the next ones.
        with (
            ThreadPoolExecutor(1) as committer,
            closing(work_off(tasks, work, num_workers=place.num_workers, on_images=on_images)) as results,
        ):
            for shard in results:
                written.append(shard)
                commits.append(committer.submit(_commit, shard, place.folder))
                for commit in commits:
                    if commit.done():
                        commit.result()
            for commit in commits:
                commit.result()
    finally:
        index.remove_leftovers(place.folder)
    return written


def _commit(shard: WrittenShard, folder: Path) -> None:
    """Makes a written shard count, then removes those it replaces."""
    if shard.partial is not None:
        index.put_in_place(shard.partial, index.pixels_file(folder, shard.task.number))
        index.write_index(folder, shard.task.number, shard.entries)
    for number in shard.task.replaces:
        index.remove_shard(folder, number)


def _require_space(tasks: Sequence[ShardTask], place: Place) -> None:
    image_bytes = place.size_px**2
    needed = image_bytes * sum(len(task.items) for task in tasks if not task.replaces)
    # Shards in place of others need room only until these are removed: one in each process, one on its way to disk.
    moves = sorted((len(task.items) for task in tasks if task.replaces), reverse=True)
    needed += image_bytes * sum(moves[: place.num_workers + 1])
    free = shutil.disk_usage(place.folder).free
    if needed > free:
        raise CacheError(
            f"{place.folder}: {needed / 1e6:,.0f} MB are needed for images of {place.size_px} px, and "
            f"{free / 1e6:,.0f} MB are free: make room, or set data.cache_folder to another disk"
        )
