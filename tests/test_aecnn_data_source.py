"""Images in memory, images from files, and what happens to unreadable ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from aecnn.config import DatasetConfig
from aecnn.data.buffer import DeviceReader
from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.source import FileImages, ImageSource, LoadedImages, MemoryImages, load_images
from aecnn.errors import ImageError, ManifestError
from aecnn.findings import NUM_FINDINGS

SMALL_PX, LARGE_PX = 16, 400


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


def load(manifest: Manifest, *, in_memory: bool, skip: bool = False) -> LoadedImages:
    """Loads under a limit of 1 MB, in a size that does not fit where the images are to come from files."""
    dataset = DatasetConfig(root=manifest.root, memory_limit_mb=1, on_unreadable="skip" if skip else "refuse")
    return load_images(manifest, dataset, size_px=SMALL_PX if in_memory else LARGE_PX)


def levels(source: ImageSource, rows: list[int]) -> list[int]:
    images = source.read(np.array(rows, dtype=np.int64))
    assert images.shape == (len(rows), 1, source.size_px, source.size_px)
    assert images.dtype == torch.uint8
    return [int(image.unique().item()) for image in images]


@pytest.mark.parametrize(("in_memory", "kind"), [(True, MemoryImages), (False, FileImages)])
def test_rows_come_in_the_order_asked_for(manifest: Manifest, in_memory: bool, kind: type) -> None:
    loaded = load(manifest, in_memory=in_memory)
    assert isinstance(loaded.images, kind)
    assert len(loaded.images) == len(loaded.manifest) == 10
    assert loaded.images.size_px == (SMALL_PX if in_memory else LARGE_PX)
    assert loaded.skipped == ()
    assert levels(loaded.images, [7, 0, 7, 3]) == [70, 0, 70, 30]
    assert levels(loaded.images, []) == []


def test_the_limit_is_what_the_decoded_images_take(manifest: Manifest) -> None:
    dataset = DatasetConfig(root=manifest.root, memory_limit_mb=1)
    loaded = {
        size_px: load_images(manifest, dataset, size_px=size_px).images
        for size_px in (316, 317)  # 10 · 316² < 10⁶ < 10 · 317²
    }
    assert isinstance(loaded[316], MemoryImages)
    assert isinstance(loaded[317], FileImages)


def test_what_is_read_is_a_copy(manifest: Manifest) -> None:
    images = load(manifest, in_memory=True).images
    images.read(np.array([4])).fill_(255)
    assert levels(images, [4]) == [40]


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_are_all_refused_at_once(manifest: Manifest, in_memory: bool) -> None:
    Path(manifest.table["path"][2]).write_bytes(b"text")
    Path(manifest.table["path"][5]).write_bytes(Path(manifest.table["path"][6]).read_bytes()[:60])
    Path(manifest.table["path"][9]).unlink()
    with pytest.raises(ManifestError) as caught:
        load(manifest, in_memory=in_memory)
    assert [fault.split(": ")[0][-7:] for fault in caught.value.faults] == ["002.png", "005.png", "009.png"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_are_skipped_and_reported(manifest: Manifest, in_memory: bool) -> None:
    for row in (0, 5):
        Path(manifest.table["path"][row]).write_bytes(b"text")
    loaded = load(manifest, in_memory=in_memory, skip=True)
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
        load(manifest, in_memory=True, skip=True)


def test_a_file_that_vanishes_later_is_an_error_that_names_it(manifest: Manifest) -> None:
    images = load(manifest, in_memory=False).images
    Path(manifest.table["path"][3]).unlink()
    assert levels(images, [2, 4]) == [20, 40]
    with pytest.raises(ImageError, match=r"003\.png"):
        images.read(np.array([2, 3]))


def test_selections_of_selections_keep_images_and_rows_together(manifest: Manifest) -> None:
    loaded = load(manifest, in_memory=True)
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
        DatasetConfig(root=manifest.root),
        size_px=8,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 10) for done in range(1, 11)]


def test_a_manifest_without_images_is_refused(manifest: Manifest) -> None:
    labels_only = Manifest(root=manifest.root, table=manifest.table.assign(path=None), targets=manifest.targets)
    with pytest.raises(ManifestError, match="without its images"):
        load(labels_only, in_memory=True)


def test_real_images_are_the_same_from_memory_and_from_files(real_data: Path) -> None:
    manifest = read_manifest(real_data / "nih_64px").select(np.arange(0, 1000, 25))
    rows = np.arange(len(manifest))[::-1]
    size_px = 160  # 40 images in a little over 1 MB
    from_memory, from_files = (
        load_images(manifest, DatasetConfig(root=manifest.root, memory_limit_mb=limit), size_px=size_px).images.read(
            rows
        )
        for limit in (8192, 1)
    )
    assert torch.equal(from_memory, from_files)
    first = decode_radiograph(Path(manifest.table["path"].iloc[-1]), size_px=size_px)
    assert np.array_equal(from_memory[0, 0].numpy(), first)


@pytest.mark.parametrize("in_memory", [True, False])
def test_given_room_is_filled_and_given_back(manifest: Manifest, in_memory: bool) -> None:
    images = load(manifest, in_memory=in_memory).select([9, 3, 5]).images
    room = torch.zeros((4, 1, images.size_px, images.size_px), dtype=torch.uint8)
    batch = images.read(np.array([1, 0]), out=room[1:3])
    assert batch.data_ptr() == room[1:3].data_ptr()
    assert [int(image.unique().item()) for image in room] == [0, 30, 90, 0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_room_that_does_not_fit_is_refused(manifest: Manifest, in_memory: bool) -> None:
    images = load(manifest, in_memory=in_memory).images
    side = images.size_px
    for room in (torch.zeros((3, 1, side, side), dtype=torch.uint8), torch.zeros((2, 1, side, side))):
        with pytest.raises(ValueError, match="expected contiguous uint8"):
            images.read(np.array([0, 1]), out=room)


def test_a_reader_uses_one_buffer_for_all_its_batches(manifest: Manifest) -> None:
    reader = DeviceReader(load(manifest, in_memory=True).images, torch.device("cpu"))
    first = reader.read(np.array([1, 2, 3, 4]))
    assert [int(image.unique().item()) for image in first] == [10, 20, 30, 40]
    last = reader.read(np.array([7, 6]))
    assert [int(image.unique().item()) for image in last] == [70, 60]
    assert last.data_ptr() == first.data_ptr()
    assert len(reader.read(np.arange(10))) == 10  # a larger one gets a larger buffer


@pytest.mark.gpu
def test_a_batch_on_its_way_to_a_gpu_is_not_overwritten(manifest: Manifest) -> None:
    images, device = load(manifest, in_memory=False).images, torch.device("cuda")
    reader = DeviceReader(images, device)
    busy = torch.randn(8192, 8192, device=device)
    batches = []
    for row in range(10):
        busy = busy @ busy  # keeps the stream behind the reader
        batches.append(reader.read(np.full(8, row)))
    assert [int(batch.unique().item()) for batch in batches] == [10 * row for row in range(10)]
