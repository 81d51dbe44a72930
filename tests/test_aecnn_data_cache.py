"""The decoded cache: true to the files or not used, and nothing of a withdrawn patient stays in it."""

import csv
import os
import resource
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aecnn.config import DatasetConfig, FilesConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.cache import lock
from aecnn.data.cache.build import CacheReport, build_cache
from aecnn.data.cache.index import Entry, FileState, Shard
from aecnn.data.cache.lock import locked
from aecnn.data.cache.lookup import locate
from aecnn.data.cache.plan import Surviving, plan_update
from aecnn.data.cache.read import CachedImages, map_shards
from aecnn.data.cache.verify import verify_cache
from aecnn.data.cache.write import Item
from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.source import LoadedImages, MemoryImages, load_images
from aecnn.errors import CacheError, ManifestError
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from aecnn.training.loop import train_locally
from federation_in_process import same_weights

SIZE_PX = 24
NUM_IMAGES = 80  # three shards: 32, 32 and 16


def name_of(number: int) -> str:
    return f"{number // 2:08d}_{number % 2:03d}.png"


def write_image(path: Path, *, seed: int, size_px: int = SIZE_PX) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size_px, size_px), dtype=np.uint8)).save(path)


def write_table(root: Path, numbers: range | list[int], finding: str = "Mass") -> None:
    lines = ["Image Index,Finding Labels,Patient ID", *(f"{name_of(n)},{finding},{n // 2}" for n in numbers)]
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Noise, two images a patient: every image's bytes are unmistakable."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        write_image(root / "images" / name_of(number), seed=number)
    write_table(root, range(NUM_IMAGES))
    return root


def build(root: Path, *, size_px: int = SIZE_PX, num_workers: int = 1, **dataset: object) -> CacheReport:
    config = DatasetConfig.model_validate({"root": root, **dataset})
    return build_cache(config, size_px=size_px, num_workers=num_workers)


def load(root: Path, *, size_px: int = SIZE_PX, **dataset: object) -> LoadedImages:
    config = DatasetConfig.model_validate({"root": root, **dataset})
    return load_images(read_manifest(config), config, size_px=size_px)


def truth(manifest: Manifest, *, size_px: int = SIZE_PX) -> torch.Tensor:
    images = [decode_radiograph(Path(path), size_px=size_px) for path in manifest.table["path"]]
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def is_true(loaded: LoadedImages) -> bool:
    rows = np.arange(len(loaded.manifest))
    return torch.equal(loaded.images.read(rows), truth(loaded.manifest, size_px=loaded.images.size_px))


def counts(report: CacheReport) -> tuple[int, int, int, int]:
    return report.num_decoded, report.num_copied, report.num_kept, report.num_removed


def files_of(root: Path) -> dict[str, int]:
    """The files of a dataset with their inodes: a file written anew has another."""
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*") if path.is_file()}


def rewrite_index(path: Path, column: str, value: str) -> None:
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    lines[1][lines[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def cached_pixels(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_image_is_read_as_it_is_decoded_and_in_the_order_asked_for(root: Path) -> None:
    report = build(root)
    assert counts(report) == (NUM_IMAGES, 0, 0, 0)
    assert (report.num_images, report.num_bytes) == (NUM_IMAGES, NUM_IMAGES * SIZE_PX**2)
    assert sorted(os.listdir(root / "aecnn-cache")) == [f"{SIZE_PX}px", "lock"]
    loaded = load(root)
    assert isinstance(loaded.images, CachedImages)
    assert loaded.warnings == ()
    assert is_true(loaded)
    rows = np.array([79, 0, 40, 0, 33])
    assert torch.equal(loaded.images.read(rows), truth(loaded.manifest)[rows])
    some = loaded.select([7, 70]).images
    room = torch.zeros((3, 1, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    batch = some.read(np.array([1, 0]), out=room[:2])
    assert batch.data_ptr() == room.data_ptr()
    assert torch.equal(room[:2], truth(loaded.manifest)[[70, 7]])
    assert not room[2].any()
    batch.fill_(0)
    assert is_true(loaded)  # what was read is a copy


def test_a_second_run_decodes_nothing_and_touches_no_file(root: Path) -> None:
    build(root)
    before = files_of(root)
    assert counts(build(root)) == (0, 0, NUM_IMAGES, 0)
    assert files_of(root) == before


@pytest.mark.slow
def test_several_processes_give_the_same_images_and_progress_reaches_the_total(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    dataset = DatasetConfig(root=root)
    report = build_cache(
        dataset, size_px=SIZE_PX, num_workers=2, on_progress=lambda done, total: seen.append((done, total))
    )
    assert counts(report) == (NUM_IMAGES, 0, 0, 0)
    assert seen == sorted(seen)
    assert seen[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert is_true(load(root))


@pytest.mark.slow
def test_training_is_bit_identical_with_and_without_the_cache(phantom_64px: Path, tmp_path: Path) -> None:
    plan = Plan(
        images=ImagesConfig(size_px=96, crop_size_px=64, rotation_deg=5.0),
        model=ModelConfig(backbone="resnet18"),
        training=TrainingConfig(batch_size=6, local_epochs=1, learning_rate=1e-3),
    )
    build(phantom_64px, size_px=96, cache_folder=tmp_path)
    weights = []
    for use_cache, kind in ((True, CachedImages), (False, MemoryImages)):
        loaded = load(phantom_64px, size_px=96, cache_folder=tmp_path, use_cache=use_cache)
        assert isinstance(loaded.images, kind)
        model = build_model(plan.model, seed=0, input_size_px=64)
        train_locally(model, loaded, np.arange(14), plan, seed=1, device=torch.device("cpu"))
        weights.append(weights_of(model))
    assert same_weights(*weights)


def test_a_changed_and_a_new_file_are_decoded_and_training_does_not_wait_for_that(root: Path) -> None:
    write_table(root, range(NUM_IMAGES - 1))
    build(root)
    write_image(root / "images" / name_of(5), seed=1000)
    write_table(root, range(NUM_IMAGES))
    loaded = load(root)
    assert isinstance(loaded.images, CachedImages)
    assert is_true(loaded)
    assert loaded.warnings == ("2 of 80 images are not in the cache or have changed: run `aecnn cache` again",)
    assert counts(build(root)) == (2, 31, 47, 1)
    loaded = load(root)
    assert is_true(loaded)
    assert loaded.warnings == ()


def test_a_file_with_the_same_content_is_not_decoded_again(root: Path) -> None:
    build(root)
    pixels = {name: inode for name, inode in files_of(root).items() if name.endswith(".npy")}
    moved = root / "images_001"
    moved.mkdir()
    for number in (3, 40):
        shutil.move(root / "images" / name_of(number), moved)
        os.utime(moved / name_of(number), ns=(1, 1))
    assert counts(build(root)) == (0, 0, NUM_IMAGES, 0)
    assert {name: inode for name, inode in files_of(root).items() if name.endswith(".npy")} == pixels
    loaded = load(root)
    assert loaded.warnings == ()
    assert is_true(loaded)


def test_targets_come_from_the_table_and_the_index_follows_it(root: Path) -> None:
    build(root)
    write_table(root, range(NUM_IMAGES), finding="Hernia")
    assert load(root).manifest.targets[0].argmax() == 13
    build(root)
    with (root / "aecnn-cache" / f"{SIZE_PX}px" / "shard-00000.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["Mass"], first["Hernia"], first["patient"], first["source"]) == (
        "0",
        "1",
        "0",
        "images/" + name_of(0),
    )


def test_nothing_of_a_withdrawn_patient_stays_on_disk_in_any_size(root: Path) -> None:
    for size_px in (SIZE_PX, 16, 48):
        build(root, size_px=size_px)
    withdrawn = read_manifest(root).select([40, 41])
    pixels = [
        truth(withdrawn, size_px=size_px)[row].numpy().tobytes() for size_px in (SIZE_PX, 16, 48) for row in (0, 1)
    ]
    assert all(content in cached_pixels(root / "aecnn-cache") for content in pixels)
    (root / "aecnn-cache" / "48px" / "cache.json").write_text("{}")  # as if made by another version
    (root / "excluded_patients.txt").write_text("20\n")
    assert counts(build(root)) == (0, 30, 48, 2)
    left = cached_pixels(root / "aecnn-cache")
    assert not any(content in left for content in pixels)
    assert name_of(40).encode() not in left
    for size_px in (SIZE_PX, 16):
        loaded = load(root, size_px=size_px)
        assert len(loaded.manifest) == NUM_IMAGES - 2
        assert loaded.warnings == ()
        assert is_true(loaded)


def test_a_training_goes_on_while_its_shards_are_replaced(root: Path) -> None:
    build(root)
    loaded, wanted = load(root), truth(read_manifest(root))
    write_table(root, [number for number in range(NUM_IMAGES) if number % 8])
    assert counts(build(root))[1] == NUM_IMAGES - NUM_IMAGES // 8
    assert torch.equal(loaded.images.read(np.arange(NUM_IMAGES)), wanted)


def test_hospitals_of_one_process_open_each_shard_once(root: Path) -> None:
    build(root)
    one, two = load(root).images, load(root).images
    assert isinstance(one, CachedImages)
    assert isinstance(two, CachedImages)
    assert all(first is second for first, second in zip(one.shards, two.shards, strict=True))


def test_a_second_builder_is_refused_and_so_is_verifying_meanwhile(root: Path) -> None:
    build(root)
    with locked(root / "aecnn-cache", exclusive=True):
        with pytest.raises(CacheError, match="another `aecnn cache` is at work"):
            build(root)
        with pytest.raises(CacheError, match="another `aecnn cache` is at work"):
            verify_cache(DatasetConfig(root=root), size_px=SIZE_PX, num_workers=1)
    build(root)


def test_while_a_builder_is_at_work_the_images_are_decoded_and_a_sentence_says_so(root: Path) -> None:
    build(root)
    with locked(root / "aecnn-cache", exclusive=True):
        loaded = load(root)
    assert isinstance(loaded.images, MemoryImages)
    (sentence,) = loaded.warnings
    assert "another `aecnn cache` is at work" in sentence
    assert "the images are decoded" in sentence
    assert is_true(loaded)
    assert load(root).warnings == ()


def test_nobody_can_change_a_cache_while_it_is_being_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)
    build(root)
    index = root / "aecnn-cache" / f"{SIZE_PX}px" / "shard-00001.csv"
    content = index.read_bytes()
    index.unlink()
    os.mkfifo(index)  # reading it waits for the one who writes
    with ThreadPoolExecutor(1) as reader:
        loading = reader.submit(load, root)
        with index.open("wb") as pipe:
            with pytest.raises(CacheError, match="is being read"), locked(root / "aecnn-cache", exclusive=True):
                pass
            pipe.write(content)
        assert loading.result().warnings == ()
    with locked(root / "aecnn-cache", exclusive=True):
        assert is_true(loading.result())  # once open it is held no longer, and read on


def test_a_builder_waits_for_a_reader_who_is_soon_done(root: Path) -> None:
    build(root)
    with ThreadPoolExecutor(1) as builder:
        with locked(root / "aecnn-cache", exclusive=False):
            building = builder.submit(build, root)
            with pytest.raises(TimeoutError):
                building.result(timeout=0.5)
        assert counts(building.result()) == (0, 0, NUM_IMAGES, 0)


def test_a_shard_that_is_not_the_one_its_index_describes_is_not_read(root: Path) -> None:
    build(root)
    dataset = DatasetConfig(root=root)
    located = locate(read_manifest(dataset), dataset, size_px=SIZE_PX)
    write_table(root, range(70, NUM_IMAGES))
    build(root, files=FilesConfig(bits_stored=12).model_dump())  # numbers its shards from 0 again
    shards, mapped = map_shards(located)
    assert shards == ()
    assert (mapped.shard == -1).all()
    assert "not the file that its index describes" in mapped.warnings[0]


def test_a_copy_without_the_lock_is_read_unless_somebody_begins_to_change_it(root: Path) -> None:
    build(root)
    (root / "aecnn-cache" / "lock").unlink()
    loaded = load(root)
    assert isinstance(loaded.images, CachedImages)
    assert loaded.warnings == ()
    assert verify_cache(DatasetConfig(root=root), size_px=SIZE_PX, num_workers=1) == []
    assert not (root / "aecnn-cache" / "lock").exists()
    with pytest.raises(CacheError, match="is at work"), locked(root / "aecnn-cache", exclusive=False):
        build(root)


def test_a_cache_that_cannot_be_read_is_not_used_and_a_sentence_says_so(root: Path) -> None:
    loaded = load(root, cache_folder=root / ("x" * 300))
    (sentence,) = loaded.warnings
    assert "cannot be read (File name too long)" in sentence
    assert is_true(loaded)


def test_the_folders_are_made_for_their_owner_alone(root: Path, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        build(root)
        build(root, cache_folder=tmp_path / "new" / "cache")
    finally:
        os.umask(umask)
    for cache in (root / "aecnn-cache", tmp_path / "new" / "cache"):
        assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, cache / f"{SIZE_PX}px")] == [0o700, 0o700]


def test_a_withdrawn_patient_who_is_nobody_is_told_by_whoever_reads(root: Path) -> None:
    (root / "excluded_patients.txt").write_text("999\n")
    (sentence,) = build(root).warnings
    assert "999" in sentence
    write_table(root, range(NUM_IMAGES - 2))
    write_image(root / "images" / name_of(0), seed=1000)
    first, second = load(root).warnings
    assert first == sentence
    assert "not in the cache" in second


@pytest.mark.parametrize("damage", ["pixels cut", "pixels gone", "index cut", "index empty", "another size", "crc cut"])
def test_a_damaged_shard_is_not_believed_and_decoded_again(root: Path, damage: str) -> None:
    build(root)
    shard = root / "aecnn-cache" / f"{SIZE_PX}px" / "shard-00001"
    pixels, index = shard.with_suffix(".npy"), shard.with_suffix(".csv")
    if damage == "pixels cut":
        os.truncate(pixels, 10_000)
    elif damage == "pixels gone":
        pixels.unlink()
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:-200])
    elif damage == "index empty":
        index.write_bytes(b"")
    elif damage == "another size":
        np.save(pixels, np.zeros((32, SIZE_PX + 1, SIZE_PX + 1), dtype=np.uint8))
    else:
        rewrite_index(index, "pixels_crc32", "abc")
    loaded = load(root)
    assert is_true(loaded)
    damaged, missing = loaded.warnings
    assert f"{shard}: is damaged" in damaged
    assert missing.startswith("32 of 80 images are not in the cache")
    assert counts(build(root)) == (32, 0, 48, 0)
    assert load(root).warnings == ()
    assert is_true(load(root))


def test_a_cache_made_in_another_way_is_not_used_and_made_anew(root: Path) -> None:
    other = FilesConfig(bits_stored=12).model_dump()
    build(root)
    loaded = load(root, files=other)
    assert isinstance(loaded.images, MemoryImages)
    assert "bits_stored" in loaded.warnings[0]
    assert counts(build(root, files=other)) == (NUM_IMAGES, 0, 0, 0)
    folder = root / "aecnn-cache" / f"{SIZE_PX}px"
    text = (folder / "cache.json").read_text()
    (folder / "cache.json").write_text(text.replace('"decoder_version": ', '"decoder_version": 99'))
    loaded = load(root, files=other)
    assert isinstance(loaded.images, MemoryImages)
    assert "decoder_version 99" in loaded.warnings[0]
    (folder / "cache.json").write_text("no JSON")
    assert "cannot be read" in load(root, files=other).warnings[0]
    assert counts(build(root)) == (NUM_IMAGES, 0, 0, 0)


def test_another_size_or_no_cache_is_as_if_there_were_none(root: Path) -> None:
    build(root)
    for loaded in (load(root, size_px=16), load(root, use_cache=False)):
        assert isinstance(loaded.images, MemoryImages)
        assert loaded.warnings == ()
        assert is_true(loaded)


def test_a_cache_elsewhere_leaves_the_data_folder_alone_and_belongs_to_one_dataset(root: Path, tmp_path: Path) -> None:
    before = files_of(root)
    elsewhere = tmp_path / "scratch" / "cache"
    build(root, cache_folder=elsewhere)
    loaded = load(root, cache_folder=elsewhere)
    assert isinstance(loaded.images, CachedImages)
    assert is_true(loaded)
    assert files_of(root) == before
    moved = root.rename(tmp_path / "moved")  # paths in the cache are relative
    assert load(moved, cache_folder=elsewhere).warnings == ()
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    write_image(other / "images" / name_of(500), seed=1)
    write_table(other, [500])
    with pytest.raises(CacheError, match="holds 80 images, of which 0 are in this dataset's table"):
        build(other, cache_folder=elsewhere, size_px=16)
    assert load(moved, cache_folder=elsewhere).warnings == ()


def test_some_names_in_common_do_not_let_a_dataset_remove_the_images_of_another(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "cache"
    build(root, cache_folder=elsewhere)
    write_table(root, range(39))  # as if of another dataset
    with pytest.raises(CacheError, match="holds 80 images, of which 39 are in this dataset's table"):
        build(root, cache_folder=elsewhere)
    write_table(root, range(40))
    assert counts(build(root, cache_folder=elsewhere)) == (0, 8, 32, 40)


def test_withdrawn_patients_do_not_make_a_dataset_another_one(root: Path, tmp_path: Path) -> None:
    build(root, cache_folder=tmp_path / "cache")
    (root / "excluded_patients.txt").write_text("\n".join(map(str, range(30))))
    report = build(root, cache_folder=tmp_path / "cache")
    assert (report.num_images, report.num_removed) == (20, 60)


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(root: Path) -> None:
    (root / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be written \(Not a directory\).*data\.cache_folder"):
        build(root, cache_folder=root / "file" / "cache")


def test_too_little_room_is_told_before_anything_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=NUM_IMAGES * SIZE_PX**2 - 1))
    with pytest.raises(CacheError, match="are needed for images of 24 px"):
        build(root)
    assert not list((root / "aecnn-cache").rglob("*.npy"))


def test_a_patient_is_removed_even_where_there_is_no_room_for_new_images(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(root, range(NUM_IMAGES - 40))
    build(root)
    pixels = truth(read_manifest(root))[4].numpy().tobytes()
    assert pixels in cached_pixels(root / "aecnn-cache")
    write_table(root, range(NUM_IMAGES))
    (root / "excluded_patients.txt").write_text("2\n")
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=40 * SIZE_PX**2 - 1))
    with pytest.raises(CacheError, match="are needed"):
        build(root)
    assert pixels not in cached_pixels(root / "aecnn-cache")


@pytest.mark.parametrize("by_table", [False, True])
def test_a_withdrawn_patient_is_removed_even_where_the_dataset_is_faulty(root: Path, *, by_table: bool) -> None:
    for size_px in (SIZE_PX, 16, 48):
        build(root, size_px=size_px)
    withdrawn = read_manifest(root).select([40, 41])
    pixels = [
        truth(withdrawn, size_px=size_px)[row].numpy().tobytes() for size_px in (SIZE_PX, 16, 48) for row in (0, 1)
    ]
    (root / "aecnn-cache" / "48px" / "cache.json").write_text("{}")  # as if made by another version
    (root / "excluded_patients.txt").write_text("0020\n")
    (root / "images" / name_of(7)).rename(root / "away.png")
    with pytest.raises(ManifestError, match=name_of(7)):
        build(root / "Data_Entry_2017.csv" if by_table else root)
    left = cached_pixels(root / "aecnn-cache")
    assert not any(content in left for content in pixels)
    assert name_of(40).encode() not in left
    (root / "away.png").rename(root / "images" / name_of(7))
    for size_px in (SIZE_PX, 16):
        assert load(root, size_px=size_px).warnings == ()
        assert counts(build(root, size_px=size_px)) == (0, 0, NUM_IMAGES - 2, 0)


def test_where_a_withdrawn_patient_cannot_be_removed_that_is_said_beside_the_faults(root: Path) -> None:
    build(root)
    (root / "excluded_patients.txt").write_text("20\n")
    (root / "images" / name_of(7)).unlink()
    with locked(root / "aecnn-cache", exclusive=True), pytest.raises(ManifestError) as caught:
        build(root)
    first, second = caught.value.faults
    assert "may still hold images of patients who withdrew their consent" in first
    assert name_of(7) in second


def test_a_disk_that_fills_up_leaves_what_was_finished(root: Path) -> None:
    write_table(root, range(32))
    build(root)
    write_table(root, range(NUM_IMAGES))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_PX**2 * 20, hard))  # the next shard would have 32 images
    try:
        with pytest.raises(CacheError, match=r"cannot be written \(File too large\).*what was finished is kept"):
            build(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(root / "aecnn-cache" / f"{SIZE_PX}px")) == [
        "cache.json",
        "shard-00000.csv",
        "shard-00000.npy",
    ]
    assert counts(build(root)) == (48, 0, 32, 0)
    assert is_true(load(root))


def test_unreadable_files_are_all_named_and_the_rest_is_kept_or_they_are_skipped(root: Path) -> None:
    for number in (6, 50):
        (root / "images" / name_of(number)).write_bytes(b"no picture")
    with pytest.raises(ManifestError) as caught:
        build(root)
    assert [name_of(number) in fault for number, fault in zip((6, 50), caught.value.faults, strict=True)] == [
        True,
        True,
    ]
    with pytest.raises(ManifestError, match="2 faults"):
        load(root)
    report = build(root, on_unreadable="skip")
    assert counts(report) == (0, 0, NUM_IMAGES - 2, 0)
    assert len(report.unreadable) == 2
    loaded = load(root, on_unreadable="skip")
    assert len(loaded.skipped) == 2
    assert len(loaded.manifest) == NUM_IMAGES - 2
    assert loaded.warnings == ()
    assert is_true(loaded)
    for number in (6, 50):
        write_image(root / "images" / name_of(number), seed=number)
    assert counts(build(root)) == (2, 0, NUM_IMAGES - 2, 0)
    assert is_true(load(root))


def test_verifying_finds_a_flipped_bit_and_a_file_replaced_behind_its_back(root: Path) -> None:
    dataset = DatasetConfig(root=root)
    with pytest.raises(CacheError, match="there is no cache of 24 px"):
        verify_cache(dataset, size_px=SIZE_PX, num_workers=1)
    build(root)
    assert verify_cache(dataset, size_px=SIZE_PX, num_workers=2) == []
    shard = root / "aecnn-cache" / f"{SIZE_PX}px" / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    path = root / "images" / name_of(3)
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(root).warnings == ()  # neither shows without reading
    source, pixels = verify_cache(dataset, size_px=SIZE_PX, num_workers=2)
    assert f"image 3 ({name_of(3)})" in source
    assert "is not the file that was decoded" in source
    assert f"{shard} image 31 ({name_of(63)})" in pixels
    assert "the pixels are not those that were stored" in pixels


def test_verifying_tells_what_is_missing_and_what_should_not_be_there(root: Path) -> None:
    write_table(root, range(NUM_IMAGES - 1))
    build(root)
    write_table(root, range(1, NUM_IMAGES))
    extra, missing = verify_cache(DatasetConfig(root=root), size_px=SIZE_PX, num_workers=1)
    assert missing == f"1 of 79 images are not in the cache, such as {name_of(NUM_IMAGES - 1)}"
    assert f"image 0 ({name_of(0)}): is not in the table" in extra


def test_pixels_that_rotted_are_not_copied_into_a_new_shard(root: Path) -> None:
    build(root)
    shard = root / "aecnn-cache" / f"{SIZE_PX}px" / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    write_table(root, range(1, NUM_IMAGES))
    assert counts(build(root)) == (1, 30, 48, 1)
    assert is_true(load(root))


@pytest.mark.parametrize(("num_shards", "num_tasks"), [(384, 0), (385, 2)])
def test_beyond_384_small_shards_are_put_together(num_shards: int, num_tasks: int) -> None:
    items = {str(n): Item(str(n), str(n), ("0",) * 14, f"/{n}.png", f"{n}.png") for n in range(num_shards)}
    entries = [Entry(n, n, ("0",) * 14, f"{n}.png", FileState(1, 1), "", "") for n in items]
    found = [Surviving(Shard(Path("/"), n, SIZE_PX, 128, (entry,)), (entry,)) for n, entry in enumerate(entries)]
    plan = plan_update(found, items, size_px=SIZE_PX, first_number=500, num_workers=1)
    assert len(plan.kept) == (0 if num_tasks else num_shards)
    assert plan.dropped == ()
    assert plan.decodes == ()
    assert [task.number for task in plan.moves] == [500, 501][:num_tasks]
    assert [number for task in plan.moves for number in task.replaces] == list(range(num_shards if num_tasks else 0))
    assert all(item.stored is not None for task in plan.moves for item in task.items)
