"""Checking a cache by its hashes: are the files those that were decoded, are the pixels those that were stored?"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aecnn.config import DatasetConfig
from aecnn.data.cache.index import Shard, decoding, decoding_fault, size_folder
from aecnn.data.cache.lock import locked
from aecnn.data.cache.lookup import ADVICE, read_shards
from aecnn.data.cache.plan import wanted_items
from aecnn.data.cache.workers import Progress
from aecnn.data.cache.write import Item, Stored, crc32, read_pixels, sha256
from aecnn.data.images import read_file
from aecnn.data.manifest import read_manifest
from aecnn.errors import CacheError, ImageError
from aecnn.progress import OnImages, OnProgress


class _Check(NamedTuple):
    """A shard to check, with what the manifest says of each of its images; None where it says nothing."""

    shard: Shard
    items: tuple[Item | None, ...]


def verify_cache(
    dataset: DatasetConfig, *, size_px: int, num_workers: int, on_progress: OnProgress | None = None
) -> list[str]:
    """Reads and hashes all files and all pixels again.

    Args:
        dataset: As for `build_cache`.
        size_px: Which of its caches.
        num_workers: Threads that hash.
        on_progress: Called now and then with the number of images dealt with and the number in all.

    Returns:
        One sentence for each mismatch; none if all is well.

    Raises:
        ManifestError: The dataset is faulty.
        CacheError: There is no cache of this size, or somebody is changing it.
    """
    manifest = read_manifest(dataset)
    folder = size_folder(dataset, manifest.root, size_px=size_px)
    if not folder.is_dir():
        raise CacheError(f"there is no cache of {size_px} px at {folder}: make it with `aecnn cache` first")
    items = wanted_items(manifest)
    try:
        with locked(folder.parent, exclusive=False):
            fault = decoding_fault(folder, decoding(size_px, dataset.files))
            shards, faults = read_shards(folder, size_px=size_px)
            checks = [_Check(shard, tuple(items.get(entry.image) for entry in shard.entries)) for shard in shards]
            progress = Progress(sum(len(check.items) for check in checks), on_progress)
            with ThreadPoolExecutor(num_workers) as threads:  # hashing and reading let other threads run
                for found in threads.map(partial(_verify_shard, on_images=progress.add), checks):
                    faults += found
    except OSError as error:
        raise CacheError(f"{folder}: cannot be read ({error.strerror or error})") from error
    stored = {entry.image for shard in shards for entry in shard.entries}
    absent = [image for image in items if image not in stored]
    if absent and dataset.on_unreadable == "refuse":  # where unreadable images are skipped, some may well be absent
        faults.append(f"{len(absent):,} of {len(items):,} images are not in the cache, such as {absent[0]}")
    return ([f"{folder}: {fault}"] if fault else []) + sorted(faults)


def _verify_shard(check: _Check, on_images: OnImages) -> list[str]:
    faults: list[str] = []
    for row, (entry, item) in enumerate(zip(check.shard.entries, check.items, strict=True)):
        place = f"{check.shard.pixels_file} image {row} ({entry.image})"
        stored = Stored(*check.shard.place(row), entry)
        if crc32(read_pixels(stored, num_bytes=check.shard.size_px**2)) != entry.pixels_crc32:
            faults.append(f"{place}: the pixels are not those that were stored: remove this .npy file and {ADVICE}")
        if item is None:
            faults.append(f"{place}: is not in the table, or its patient withdrew consent: {ADVICE}")
        else:
            fault = _source_fault(item.path, entry.source_sha256)
            faults += [f"{place}: {fault}"] if fault else []
        on_images(1)
    return faults


def _source_fault(path: str, expected_sha256: str) -> str:
    try:
        content = read_file(Path(path))
    except ImageError as error:
        return str(error)
    if sha256(content) == expected_sha256:
        return ""
    return f"{path} is not the file that was decoded: touch it and {ADVICE}"
