"""Images in memory, images from files, and what happens to unreadable ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.source import FileImages, ImageSource, LoadedImages, MemoryImages, load_images
from aecnn.errors import ImageError, ManifestError
from aecnn.findings import NUM_FINDINGS

SIZE_PX = 16


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Ten images, each of one grey level: row i has level 10·i."""
    paths = [tmp_path / f"{row:03}.png" for row in range(10)]
    for row, path in enumerate(paths):
        Image.new("L", (32, 32), color=10 * row).save(path)
    table = pd.DataFrame({"image": [path.name for path in paths], "path": [str(path) for path in paths]})
    table["patient"] = [str(row // 2) for row in range(10)]
    targets = np.zeros((10, NUM_FINDINGS), dtype=np.float32)
    targets[:, 0] = np.arange(10) % 2
    return Manifest(root=tmp_path, table=table, targets=targets)


def load(manifest: Manifest, *, memory_limit_mb: int, skip: bool = False) -> LoadedImages:
    return load_images(
        manifest, size_px=SIZE_PX, on_unreadable="skip" if skip else "refuse", memory_limit_mb=memory_limit_mb
    )


def levels(source: ImageSource, rows: list[int]) -> list[int]:
    images = source.read(np.array(rows, dtype=np.int64))
    assert images.shape == (len(rows), 1, source.size_px, source.size_px)
    assert images.dtype == torch.uint8
    return [int(image.unique().item()) for image in images]


@pytest.mark.parametrize(("memory_limit_mb", "kind"), [(1, MemoryImages), (0, FileImages)])
def test_rows_come_in_the_order_asked_for(manifest: Manifest, memory_limit_mb: int, kind: type) -> None:
    loaded = load(manifest, memory_limit_mb=memory_limit_mb)
    assert isinstance(loaded.images, kind)
    assert len(loaded.images) == len(loaded.manifest) == 10
    assert loaded.images.size_px == SIZE_PX
    assert loaded.skipped == ()
    assert levels(loaded.images, [7, 0, 7, 3]) == [70, 0, 70, 30]
    assert levels(loaded.images, []) == []


def test_the_limit_is_what_the_decoded_images_take(manifest: Manifest) -> None:
    loaded = {
        size_px: load_images(manifest, size_px=size_px, on_unreadable="refuse", memory_limit_mb=1).images
        for size_px in (316, 317)  # 10 · 316² < 10⁶ < 10 · 317²
    }
    assert isinstance(loaded[316], MemoryImages)
    assert isinstance(loaded[317], FileImages)


def test_what_is_read_is_a_copy(manifest: Manifest) -> None:
    images = load(manifest, memory_limit_mb=1).images
    images.read(np.array([4])).fill_(255)
    assert levels(images, [4]) == [40]


@pytest.mark.parametrize("memory_limit_mb", [1, 0])
def test_unreadable_images_are_all_refused_at_once(manifest: Manifest, memory_limit_mb: int) -> None:
    Path(manifest.table["path"][2]).write_bytes(b"text")
    Path(manifest.table["path"][5]).write_bytes(Path(manifest.table["path"][6]).read_bytes()[:60])
    Path(manifest.table["path"][9]).unlink()
    with pytest.raises(ManifestError) as caught:
        load(manifest, memory_limit_mb=memory_limit_mb)
    assert [fault.split(": ")[0][-7:] for fault in caught.value.faults] == ["002.png", "005.png", "009.png"]


@pytest.mark.parametrize("memory_limit_mb", [1, 0])
def test_unreadable_images_are_skipped_and_reported(manifest: Manifest, memory_limit_mb: int) -> None:
    for row in (0, 5):
        Path(manifest.table["path"][row]).write_bytes(b"text")
    loaded = load(manifest, memory_limit_mb=memory_limit_mb, skip=True)
    kept = [1, 2, 3, 4, 6, 7, 8, 9]
    assert len(loaded.skipped) == 2
    assert "000.png" in loaded.skipped[0]
    assert "005.png" in loaded.skipped[1]
    assert list(loaded.manifest.table["image"]) == [f"{row:03}.png" for row in kept]
    assert loaded.manifest.targets[:, 0].tolist() == [row % 2 for row in kept]
    assert levels(loaded.images, list(range(8))) == [10 * row for row in kept]


def test_nothing_readable_is_refused_even_when_skipping(manifest: Manifest) -> None:
    for path in manifest.table["path"]:
        Path(path).write_bytes(b"text")
    with pytest.raises(ManifestError, match="10 faults"):
        load(manifest, memory_limit_mb=1, skip=True)


def test_a_file_that_vanishes_later_is_an_error_that_names_it(manifest: Manifest) -> None:
    images = load(manifest, memory_limit_mb=0).images
    Path(manifest.table["path"][3]).unlink()
    assert levels(images, [2, 4]) == [20, 40]
    with pytest.raises(ImageError, match=r"003\.png"):
        images.read(np.array([2, 3]))


def test_selections_of_selections_keep_images_and_rows_together(manifest: Manifest) -> None:
    loaded = load(manifest, memory_limit_mb=1)
    odd = loaded.select(np.arange(10) % 2 == 1)
    assert levels(odd.images, [0, 1, 2, 3, 4]) == [10, 30, 50, 70, 90]
    some = odd.select([4, 0])
    assert levels(some.images, [0, 1]) == [90, 10]
    assert list(some.manifest.table["image"]) == ["009.png", "001.png"]
    assert len(some.images) == 2


def test_progress_counts_every_image_once(manifest: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    load_images(
        manifest,
        size_px=8,
        on_unreadable="refuse",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 10) for done in range(1, 11)]


def test_a_manifest_without_images_is_refused(manifest: Manifest) -> None:
    labels_only = Manifest(root=manifest.root, table=manifest.table.assign(path=None), targets=manifest.targets)
    with pytest.raises(ManifestError, match="without its images"):
        load(labels_only, memory_limit_mb=1)


def test_real_images_are_the_same_from_memory_and_from_files(real_data: Path) -> None:
    manifest = read_manifest(real_data / "nih_64px").select(np.arange(0, 1000, 25))
    rows = np.arange(len(manifest))[::-1]
    from_memory, from_files = (
        load_images(manifest, size_px=32, on_unreadable="refuse", memory_limit_mb=limit).images.read(rows)
        for limit in (8192, 0)
    )
    assert torch.equal(from_memory, from_files)
    first = decode_radiograph(Path(manifest.table["path"].iloc[-1]), size_px=32)
    assert np.array_equal(from_memory[0, 0].numpy(), first)
