"""What an update of a cache keeps, copies, decodes and removes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecnn.data.cache.index import Entry, FileState, Shard
from aecnn.data.cache.lookup import NUM_THREADS, file_states, relative_sources
from aecnn.data.cache.write import Item, ShardTask, Stored, file_state, sha256
from aecnn.data.images import read_file
from aecnn.data.manifest import Manifest
from aecnn.errors import ImageError

MAX_SHARD_BYTES = 512 * 10**6
MAX_SHARD_IMAGES = 384
MIN_SHARD_IMAGES = 32
SHARDS_A_WORKER = 4  # a shard is at most this part of what a worker has left, so that all end at the same time
MAX_SMALL_SHARDS = 384  # beyond it those under a quarter of the usual size are put together


@dataclass(frozen=True)
class Surviving:
    """What stays of a shard.

    Attributes:
        shard: As it was.
        entries: For each of its images the entry as it should be now, None where the image must go.
    """

    shard: Shard
    entries: tuple[Entry | None, ...]

    @property
    def true_entries(self) -> tuple[Entry, ...]:
        """The entries of the images that stay."""
        return tuple(entry for entry in self.entries if entry is not None)

    @property
    def num_true(self) -> int:
        """How many images stay."""
        return len(self.true_entries)

    @property
    def is_whole(self) -> bool:
        """Whether all images stay."""
        return None not in self.entries

    @property
    def is_changed(self) -> bool:
        """Whether the index differs from what it should say."""
        return self.entries != self.shard.entries


@dataclass(frozen=True)
class Plan:
    """One update.

    Attributes:
        kept: Shards that stay; some need their index written anew.
        dropped: Numbers of the shards of which nothing stays.
        moves: Shards to write in place of others.
        decodes: Shards to write with images that none has.
    """

    kept: tuple[Surviving, ...]
    dropped: tuple[int, ...]
    moves: tuple[ShardTask, ...]
    decodes: tuple[ShardTask, ...]


def wanted_items(manifest: Manifest) -> dict[str, Item]:
    """Gives what a cache should hold, by image."""
    table, targets = manifest.table, manifest.targets
    findings = np.where(np.isnan(targets), "", np.where(targets == 1, "1", "0")).tolist()
    images, paths = table["image"].tolist(), table["path"].tolist()
    rows = zip(images, table["patient"].tolist(), findings, paths, relative_sources(paths, manifest.root), strict=True)
    return {image: Item(image, patient, tuple(cells), path, source) for image, patient, cells, path, source in rows}


def surviving(
    shards: Sequence[Shard], items: Mapping[str, Item], *, on_images: Callable[[int], None]
) -> list[Surviving]:
    """Finds the stored images that are true to their files.

    A file whose directory entry has changed is read: with the same content the pixels are still true, and only the
    index needs the new entry.

    Args:
        shards: The old shards, oldest first.
        items: What the cache should hold.
        on_images: Called after each file that was read: with 1 if nothing more is to be done, else with 0.
    """
    states = dict(zip(items, file_states([item.path for item in items.values()]), strict=True))
    touched = [
        entry
        for shard in shards
        for entry in shard.entries
        if entry.image in items and (entry.state, entry.source) != (states[entry.image], items[entry.image].source)
    ]

    def is_same(entry: Entry) -> bool:
        same = _has_content(items[entry.image], states[entry.image], entry.source_sha256)
        on_images(int(same))  # others are dealt with when they are decoded
        return same

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        changed = {id(entry) for entry, same in zip(touched, threads.map(is_same, touched), strict=True) if not same}

    def renewed(entry: Entry) -> Entry | None:
        item = items.get(entry.image)
        if item is None or id(entry) in changed:
            return None
        state = states[entry.image] or entry.state
        return entry._replace(patient=item.patient, findings=item.findings, source=item.source, state=state)

    return _newest([Surviving(shard, tuple(map(renewed, shard.entries))) for shard in shards])


def without_others(shards: Sequence[Shard], items: Mapping[str, Item]) -> list[Surviving]:
    """Keeps the stored images that the cache should hold, whether or not they are true to their files."""
    return [
        Surviving(shard, tuple(entry if entry.image in items else None for entry in shard.entries)) for shard in shards
    ]


def _has_content(item: Item, state: FileState | None, content_sha256: str) -> bool:
    try:
        same = sha256(read_file(Path(item.path))) == content_sha256
    except ImageError:
        return False
    return same and state is not None and file_state(item.path) == state


def _newest(found: list[Surviving]) -> list[Surviving]:
    """Leaves each image once, in the newest shard that has it: an interrupted run may have stored it twice."""
    seen: set[str] = set()
    single: list[Surviving] = []
    for shard, entries in ((item.shard, item.entries) for item in reversed(found)):
        single.append(Surviving(shard, tuple(None if e is None or e.image in seen else e for e in entries)))
        seen |= {entry.image for entry in single[-1].true_entries}
    return single[::-1]


def plan_update(
    found: Sequence[Surviving],
    items: Mapping[str, Item],
    *,
    size_px: int,
    first_number: int,
    num_workers: int,
    decode: bool = True,
) -> Plan:
    """Gives the steps of an update.

    Args:
        found: What stays of each old shard.
        items: What the cache should hold.
        size_px: Side of the images.
        first_number: For the first new shard.
        num_workers: Processes that should have work.
        decode: Whether images that no shard holds are added.
    """
    limit = max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // size_px**2))
    small = {item.shard.number for item in found if item.is_whole and item.num_true < limit // 4}
    if len(small) <= MAX_SMALL_SHARDS:
        small = set()
    kept = tuple(item for item in found if item.is_whole and item.shard.number not in small)
    replaced = [item for item in found if item.num_true and (not item.is_whole or item.shard.number in small)]
    groups = _packed(replaced, items, limit=limit)
    stored = {entry.image for item in found for entry in item.true_entries}
    missing = [item for image, item in items.items() if image not in stored] if decode else []
    moves = [ShardTask(number, tuple(new), tuple(old)) for number, (new, old) in enumerate(groups, first_number)]
    parts = _parts(missing, limit=limit, num_workers=num_workers)
    decodes = [ShardTask(number, part) for number, part in enumerate(parts, first_number + len(moves))]
    dropped = tuple(item.shard.number for item in found if not item.num_true)
    return Plan(kept, dropped, tuple(moves), tuple(decodes))


def _parts(items: Sequence[Item], *, limit: int, num_workers: int) -> Iterator[tuple[Item, ...]]:
    """Cuts images into shards, smaller and smaller ones towards the end."""
    start = 0
    while start < len(items):
        fair = -(-(len(items) - start) // (SHARDS_A_WORKER * num_workers))
        end = start + min(limit, max(MIN_SHARD_IMAGES, fair))
        yield tuple(items[start:end])
        start = end


def _packed(
    replaced: Sequence[Surviving], items: Mapping[str, Item], *, limit: int
) -> list[tuple[list[Item], list[int]]]:
    """Puts what stays of replaced shards together into as few new ones, each old one whole into one of them."""
    groups: list[tuple[list[Item], list[int]]] = []
    for found in replaced:
        moving = [
            items[entry.image]._replace(stored=Stored(*found.shard.place(row), entry))
            for row, entry in enumerate(found.entries)
            if entry is not None
        ]
        if not groups or len(groups[-1][0]) + len(moving) > limit:
            groups.append(([], []))
        groups[-1][0].extend(moving)
        groups[-1][1].append(found.shard.number)
    return groups
