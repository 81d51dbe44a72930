"""The data check on files: storage, copies, extra and missing files, suspects, and the page."""

import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components

from aecnn.config import DatasetConfig, FilesConfig
from aecnn.data.check.duplicates import NEAR_BITS, identical, near_groups
from aecnn.data.check.files import examine_file, examine_files
from aecnn.data.check.outcome import Outcome
from aecnn.data.check.page import write_page
from aecnn.data.check.report import DataReport, check_dataset
from aecnn.data.manifest import read_manifest
from dicom_files import dataset_of, file_of

FILES = FilesConfig()


def check(root: Path, **changes: object) -> DataReport:
    return check_dataset(DatasetConfig(root=root, **changes), labels_only=False)


def outcome(report: DataReport, name: str) -> Outcome:
    return next(found for found in report.checks if found.check == name)


@pytest.fixture
def dataset(phantom_64px: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_64px, tmp_path / "data"))


@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 8))
def test_near_groups_are_the_connected_parts_of_counting_bits(seed: int, num_rows: int, max_distance: int) -> None:
    bits = np.random.default_rng(seed).random((num_rows, 24)) < 0.5
    near = (bits[:, None] != bits[None]).sum(axis=2) <= max_distance
    count, parts = connected_components(near)
    expected = [np.flatnonzero(parts == part).tolist() for part in range(count)]
    found = near_groups(bits, max_distance=max_distance)
    assert sorted(found) == sorted(group for group in expected if len(group) > 1)


def test_near_groups_reach_across_blocks_and_many_equal_hashes_cost_little() -> None:
    bits = np.random.default_rng(0).random((1200, 256)) < 0.5
    bits[1100] = bits[3]
    bits[1100, :NEAR_BITS] ^= True
    bits[700] = bits[3]
    bits[700, -NEAR_BITS - 1 :] ^= True
    assert near_groups(bits) == [[3, 1100]]
    assert near_groups(np.repeat(bits[:1], 60_000, axis=0)) == [list(range(60_000))]


def test_identical_groups_leave_out_what_could_not_be_read() -> None:
    assert identical(["a", "", "b", "a", "", "a"]) == [[0, 3, 5]]


def test_a_copy_in_other_clothes_is_near_and_another_radiograph_is_not(real_data: Path, tmp_path: Path) -> None:
    paths = sorted((real_data / "nih_256px" / "images").glob("*.png"))[:60]
    originals = [examine_file(path, files=FILES).phash for path in paths]
    for path, phash in zip(paths, originals, strict=True):
        grey = Image.open(path).convert("L")
        grey.save(tmp_path / "copy.jpg", quality=70)
        grey.resize((200, 200)).save(tmp_path / "copy.png")
        for name in ("copy.jpg", "copy.png"):
            copy = examine_file(tmp_path / name, files=FILES).phash
            assert (copy != phash).sum() <= NEAR_BITS
    assert near_groups(np.stack(originals)) == []


def test_files_are_examined_alike_in_one_process_and_in_two(phantom_64px: Path) -> None:
    paths = [*sorted((phantom_64px / "images").glob("*.png"))[:40], phantom_64px / "absent.png"]
    one, two = ([f for part in examine_files(paths, files=FILES, num_workers=n) for f in part] for n in (1, 2))
    assert [facts.sha256 for facts in one] == [facts.sha256 for facts in two]
    assert "absent.png" in two[-1].fault
    assert all(np.array_equal(a.thumbnail, b.thumbnail) for a, b in zip(one[:-1], two[:-1], strict=True))


def test_examining_stops_when_the_caller_stops(phantom_64px: Path) -> None:
    paths = sorted((phantom_64px / "images").glob("*.png"))
    chunks = examine_files(paths, files=FILES, num_workers=2)
    next(chunks)
    chunks.close()  # would hang or warn if the processes were left behind


def test_a_clean_dataset_has_nothing_to_mend(dataset: Path) -> None:
    report = check(dataset)
    assert report.faults == ()
    assert {outcome(report, name).status for name in ("files", "readable", "bit-depth", "identical-files")} == {"pass"}
    assert "PNG L, 8 bit" in " ".join(outcome(report, "storage").details)


def test_missing_damaged_and_extra_files_are_told_apart(dataset: Path) -> None:
    images = sorted((dataset / "images").glob("*.png"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    shutil.copy(images[1], dataset / "images" / "stray.png")
    report = check(dataset)
    assert (outcome(report, "readable").status, outcome(report, "files").status) == ("fail", "warn")
    assert images[0].name in outcome(report, "readable").details[0]
    assert images[0].name in " ".join(report.faults)
    assert outcome(report, "files").details == (f"{dataset / 'images' / 'stray.png'} is in no row",)
    images[2].unlink()
    found = outcome(check(dataset), "files")
    assert found.status == "fail"
    assert images[2].name in found.details[0]
    assert "stray.png" in found.details[1]


def test_the_same_file_under_two_patients_fails_and_under_one_warns(dataset: Path) -> None:
    table = read_manifest(dataset).table
    patient = table["patient"].value_counts().index[0]
    own = table.loc[table["patient"] == patient, "path"].tolist()
    other = table.loc[table["patient"] != patient, "path"].iloc[0]
    shutil.copy(own[0], own[1])
    found = outcome(check(dataset), "identical-files")
    assert found.status == "warn"
    assert f"of patient {patient}" in found.details[0]
    shutil.copy(own[0], other)
    found = outcome(check(dataset), "identical-files")
    assert found.status == "fail"
    assert Path(other).name in found.details[0]


def test_a_row_that_is_there_twice_is_no_copy_of_a_file(dataset: Path) -> None:
    table = next(dataset.glob("Data_Entry_2017*.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1]]))
    report = check(dataset)
    assert outcome(report, "table").status == "fail"
    assert outcome(report, "identical-files").status == "pass"


def test_sixteen_bit_images_that_leave_their_upper_bits_empty_fail_with_the_setting_that_mends(dataset: Path) -> None:
    for path in (dataset / "images").glob("*.png"):
        grey = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(grey << 4 | 15).save(path)
    found = outcome(check(dataset), "bit-depth")
    assert found.status == "fail"
    assert "set data.files.bits_stored to 12, where it is 16" in found.details[0]
    assert outcome(check(dataset, files=FilesConfig(bits_stored=12)), "bit-depth").status == "pass"


def test_blank_pictures_are_suspects_with_a_picture_in_the_report(dataset: Path, tmp_path: Path) -> None:
    blank = sorted((dataset / "images").glob("*.png"))[3]
    Image.new("L", (64, 64), color=7).save(blank)
    report = check(dataset)
    found = outcome(report, "blank")
    assert [suspect.image for suspect in found.suspects] == [blank.name]
    assert found.status == "warn"
    assert "picture" not in report.to_json()["checks"][-3]
    page = tmp_path / "report.html"
    write_page(report, page)
    text = page.read_text()
    assert stat.S_IMODE(os.stat(page).st_mode) == 0o600
    assert text.count("data:image/png;base64,") >= 1
    assert blank.name in text
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
    assert "<script" not in text


def test_the_page_shows_the_surest_suspects_and_says_how_many_there_are(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "images").glob("*.png"):
        Image.new("L", (64, 64), color=3).save(path)
    report = check(dataset)
    found = outcome(report, "blank")
    assert found.status == "fail"
    assert len(found.suspects) == report.num_images
    surenesses = [suspect.sureness for suspect in found.suspects]
    assert surenesses == sorted(surenesses, reverse=True)
    assert [suspect.picture is not None for suspect in found.suspects] == [row < 24 for row in range(len(surenesses))]
    assert outcome(report, "near-duplicates").status == "pass"  # blank pictures are no copies of each other
    write_page(report, tmp_path / "report.html")
    assert "the 24 surest are shown" in (tmp_path / "report.html").read_text()


def test_files_of_withdrawn_patients_are_counted_and_not_named(dataset: Path) -> None:
    table = read_manifest(dataset).table
    patient = table["patient"].iloc[0]
    (dataset / "excluded_patients.txt").write_text(patient)
    found = outcome(check(dataset), "files")
    count = int((table["patient"] == patient).sum())
    assert found.summary == f"{count} files of withdrawn patients are still there: delete them"
    assert found.details == ()


@pytest.mark.parametrize(("window", "status"), [({}, "fail"), ({"WindowCenter": 128, "WindowWidth": 256}, "pass")])
def test_a_dicom_of_few_bits_is_dark_unless_its_window_makes_up_for_it(
    tmp_path: Path, window: dict[str, int], status: str
) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "images").mkdir()
    values = np.tile(np.arange(256, dtype=np.uint16), (256, 1))
    (tmp_path / "images" / "a.dcm").write_bytes(file_of(dataset_of(values, BitsStored=12, HighBit=11, **window)))
    (tmp_path / "labels.csv").write_text("image,patient,Mass\na.dcm,1,0\n")
    report = check(tmp_path)
    assert outcome(report, "readable").status == "pass"
    assert outcome(report, "bit-depth").status == status


def test_one_full_picture_does_not_hide_dark_ones(dataset: Path) -> None:
    paths = sorted((dataset / "images").glob("*.png"))
    for path in paths[1:]:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) << 4 | 15).save(path)
    Image.fromarray(np.asarray(Image.open(paths[0])).astype(np.uint16) << 8 | 255).save(paths[0])
    found = outcome(check(dataset), "bit-depth")
    assert found.status == "fail"
    assert f"{len(paths) - 1} of {len(paths)} images" in found.summary


def test_names_in_the_table_cannot_write_the_page(dataset: Path, tmp_path: Path) -> None:
    table = next(dataset.glob("Data_Entry_2017*.csv"))
    table.write_text(table.read_text().replace("No Finding", "<script>alert(1)</script>", 1))
    write_page(check(dataset), tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()
