"""Patients who withdrew their consent are met by nothing that reads a dataset."""

import os
import shutil
from pathlib import Path

import pytest

from aecnn.config import DatasetConfig
from aecnn.data.consent import LIST_NAME, consent_state
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import ManifestError


@pytest.fixture
def dataset(phantom_64px: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_64px, tmp_path / "data"))


def test_a_listed_patient_is_left_out_whatever_the_spelling(dataset: Path) -> None:
    everyone = read_manifest(dataset)
    first, second = everyone.patients[:2]
    (dataset / LIST_NAME).write_text(f"# asked on 3 May\n{int(first):08d}\n\n{second}\n")
    manifest = read_manifest(dataset)
    assert set(manifest.patients) == set(everyone.patients) - {first, second}
    assert len(manifest.withdrawn_images) == len(everyone) - len(manifest) > 0
    assert manifest.warnings == ()


def test_their_images_may_be_gone_from_the_folder(dataset: Path) -> None:
    table = read_manifest(dataset).table
    gone = table["patient"].iloc[0]
    for path in table.loc[table["patient"] == gone, "path"]:
        Path(path).unlink()
    with pytest.raises(ManifestError, match="is not in images"):
        read_manifest(dataset)
    (dataset / LIST_NAME).write_text(gone)
    assert gone not in read_manifest(dataset).patients


def test_an_own_list_counts_beside_the_one_in_the_folder(dataset: Path, tmp_path: Path) -> None:
    patients = read_manifest(dataset).patients
    (dataset / LIST_NAME).write_text(patients[0])
    (tmp_path / "withdrawn.txt").write_text(patients[1])
    for named in ("../withdrawn.txt", str(tmp_path / "withdrawn.txt")):
        config = DatasetConfig(root=dataset, excluded_patients=named)
        assert set(read_manifest(config).patients) == set(patients[2:])


def test_a_list_that_is_named_and_missing_or_unreadable_stops_everything(dataset: Path) -> None:
    with pytest.raises(ManifestError, match="list of withdrawn patients is missing"):
        read_manifest(DatasetConfig(root=dataset, excluded_patients="absent.txt"))
    (dataset / LIST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(dataset)


def test_remarks_behind_a_hash_do_not_count_and_what_is_no_id_is_refused(dataset: Path) -> None:
    patients = read_manifest(dataset).patients
    (dataset / LIST_NAME).write_text(f"{patients[0]}  # letter of 3 May\n#\n")
    assert set(read_manifest(dataset).patients) == set(patients[1:])
    for line in (f"{patients[0]},withdrew", f'"{patients[0]}"', f"{patients[0]};{patients[1]}"):
        (dataset / LIST_NAME).write_text(f"{patients[2]}\n{line}\n")
        with pytest.raises(ManifestError, match=r"line 2: .* is no patient's id"):
            read_manifest(dataset)


def test_a_list_whose_link_leads_nowhere_stops_everything(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "share.txt").write_text(read_manifest(dataset).patients[0])
    (dataset / LIST_NAME).symlink_to(tmp_path / "share.txt")
    assert len(read_manifest(dataset).withdrawn_images) > 0
    (tmp_path / "share.txt").unlink()
    with pytest.raises(ManifestError, match="list of withdrawn patients is missing"):
        read_manifest(dataset)


def test_a_changed_list_is_noticed_though_size_and_time_stay(dataset: Path) -> None:
    config = DatasetConfig(root=dataset)
    (dataset / LIST_NAME).write_text("11\n")
    before, status = consent_state(config), (dataset / LIST_NAME).stat()
    (dataset / LIST_NAME).write_text("12\n")
    os.utime(dataset / LIST_NAME, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert consent_state(config) != before


def test_an_id_that_is_nobodys_is_told(dataset: Path) -> None:
    (dataset / LIST_NAME).write_text("31415926\n")
    manifest = read_manifest(dataset)
    assert "'31415926': check the spelling" in manifest.consent_warnings[0]
    loaded = load_images(manifest, DatasetConfig(root=dataset), size_px=16)
    assert loaded.warnings == manifest.consent_warnings
