"""The data check on tables alone: counts of the real tables, and faults listed instead of raised."""

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from aecnn.config import DatasetConfig
from aecnn.data.check.counts import count_labels
from aecnn.data.check.outcome import Outcome
from aecnn.data.check.report import DataReport, check_dataset
from aecnn.data.manifest import read_manifest
from aecnn.findings import FINDINGS

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"


def check_labels(root: Path, *, floor: int = 10) -> DataReport:
    return check_dataset(DatasetConfig(root=root), labels_only=True, floor=floor)


def outcome(report: DataReport, check: str) -> Outcome:
    return next(found for found in report.checks if found.check == check)


def write_table(root: Path, *rows: str, train_val: str | None = None, test: str | None = None) -> Path:
    root.mkdir(exist_ok=True)
    (root / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *rows]))
    for name, names in (("train_val", train_val), ("test", test)):
        if names is not None:
            (root / f"{name}_list.txt").write_text(names)
    return root


def test_the_full_table_is_counted_as_published(real_data: Path) -> None:
    start_s = time.process_time()  # what the reader itself needs, however busy the machine is
    report = check_labels(real_data / "nih_metadata")
    assert time.process_time() - start_s < 10.0
    assert report.status == "pass"
    document = report.to_json()
    assert (document["num_images"], document["num_patients"]) == (112_120, 30_805)
    assert document["faults"] == []
    assert document["patients_in_several_splits"] == 0
    assert document["splits"] == {
        "train_val": {"num_images": 86_524, "num_patients": 28_008},
        "test": {"num_images": 25_596, "num_patients": 2_797},
    }
    assert document["findings"] == {
        "Atelectasis": 11_559,
        "Cardiomegaly": 2_776,
        "Effusion": 13_317,
        "Infiltration": 19_894,
        "Mass": 5_782,
        "Nodule": 6_331,
        "Pneumonia": 1_431,
        "Pneumothorax": 5_302,
        "Consolidation": 4_667,
        "Edema": 2_303,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Pleural_Thickening": 3_385,
        "Hernia": 227,
        "No Finding": 60_361,
    }
    numbers = document["labels"]["images_per_patient"]
    assert numbers["1"] == {"num_images": 17_503, "num_patients": 17_503}
    assert sum(count["num_patients"] for count in numbers.values()) == 30_805


@pytest.mark.parametrize("name", ["nih_64px", "nih_256px", "nih_1024px"])
def test_the_real_folders_have_no_faults(real_data: Path, name: str) -> None:
    report = check_labels(real_data / name)
    assert report.faults == ()
    assert sum(split.num_images for split in report.labels.splits.values()) == report.num_images
    assert json.loads(json.dumps(report.to_json()))["num_patients"] == report.num_patients


def test_counts_agree_with_counting_row_by_row(real_data: Path) -> None:
    manifest = read_manifest(real_data / "nih_64px", require_images=False)
    counts = count_labels(manifest)
    table = manifest.table.assign(row=range(len(manifest)))
    for index, name in enumerate(FINDINGS):
        for split, part in (("all", table), *((key, table[table["split"] == key]) for key in ("train_val", "test"))):
            has = manifest.targets[part["row"].to_numpy(), index] == 1
            found = counts.findings[split][name]
            assert (found.positive.num_images, found.negative.num_images) == (has.sum(), (~has).sum())
            assert found.positive.num_patients == len(set(part["patient"][has]))
            assert found.negative.num_patients == len(set(part["patient"][~has]))
    for band, count in counts.age.items():
        low = int(band.rstrip("+").split("-")[0])
        high = 200 if band.endswith("+") else int(band.split("-")[1]) + 1
        inside = manifest.table[manifest.table["age_years"].between(low, high, inclusive="left")]
        assert (count.num_images, count.num_patients) == (len(inside), inside["patient"].nunique())
    for column, found in (("sex", counts.sex), ("view", counts.view)):
        expected = manifest.table.groupby(column)["patient"].agg(["size", "nunique"])
        assert (
            pd.DataFrame({k: (c.num_images, c.num_patients) for k, c in found.items()})
            .T.sort_index()
            .equals(expected.set_axis([0, 1], axis=1).rename_axis(None).sort_index())
        )


def test_faults_are_listed_beside_the_counts_of_what_could_be_read(tmp_path: Path) -> None:
    rows = ["a.png,Mass,0,1,50,F,PA", "b.png,Mas,0,1,411Y,F,PA", "c.png,No Finding,0,2,50,F,PA", "d.png,Nodule"]
    report = check_labels(write_table(tmp_path, *rows, train_val="a.png\nc.png", test="b.png"))
    assert (report.num_images, report.num_patients, report.patients_in_several_splits) == (3, 2, 1)
    assert (report.findings["Mass"], report.findings["No Finding"]) == (1, 1)  # row 3 counts for neither
    assert report.labels.splits["train_val"].num_images == 2
    assert report.status == "fail"
    assert len(report.faults) == 3
    table, splits, cells = (outcome(report, name) for name in ("table", "splits", "cells"))
    assert table.status == splits.status == "fail"
    assert "row 5: has 2 fields" in table.details[0]
    assert "row 3: unknown finding 'Mas'; did you mean 'Mass'?" in table.details[1]
    assert "'1'" in splits.details[0]
    assert cells.status == "warn"
    assert "411Y" in cells.details[0]
    assert report.labels.age["unknown"].num_images == 1


def test_a_file_name_of_another_patient_is_a_warning(tmp_path: Path) -> None:
    rows = ["00000013_000.png,Mass,0,13,50,F,PA", "00000014_002.png,Mass,0,13,50,F,PA", "x_1.png,Mass,0,9,50,F,PA"]
    found = outcome(check_labels(write_table(tmp_path, *rows)), "patient-ids")
    assert found.status == "warn"
    assert found.details == ("image '00000014_002.png' is of patient '13': one of the two is wrong",)


def test_the_floor_counts_patients_and_not_rows(tmp_path: Path) -> None:
    of_one = [f"a{i}.png,Hernia,0,1,50,F,PA" for i in range(30)]  # thirty images, one patient
    of_many = [f"b{i}.png,Mass,0,{i + 2},50,M,PA" for i in range(12)]
    report = check_labels(write_table(tmp_path, *of_one, *of_many))
    small, rare = outcome(report, "disclosure"), outcome(report, "evaluable")
    assert "Hernia, all: positive in 1 patient" in small.details
    assert "sex F: 1 patient" in small.details
    assert not any("Mass, all: positive" in text for text in small.details)
    assert "Hernia, all: positive in 1 patient (30 images)" in rare.details
    assert "Nodule, all: positive in 0 patients (0 images)" in rare.details
    assert not any(text.startswith("Nodule") for text in small.details)  # nobody is no secret
    assert any(
        "Mass, all: positive" in text for text in outcome(check_labels(tmp_path, floor=13), "disclosure").details
    )


def test_a_lateral_view_in_the_table_is_a_warning(tmp_path: Path) -> None:
    found = outcome(
        check_labels(write_table(tmp_path, "a.png,Mass,0,1,50,F,Lateral", "b.png,Mass,0,2,50,F,PA")), "views"
    )
    assert found.status == "warn"
    assert found.details == ("1 images are 'LATERAL'",)


def test_findings_that_nobody_labelled_are_told_once(tmp_path: Path) -> None:
    rows = "".join(f"{row}.png,{row},{row % 2}\n" for row in range(40))
    (tmp_path / "labels.csv").write_text(f"image,patient,Mass\n{rows}")
    report = check_labels(tmp_path)
    assert outcome(report, "evaluable").status == "pass"
    assert "no column for Atelectasis" in outcome(report, "cells").details[0]


def test_no_finding_counts_where_none_of_the_labelled_ones_is_there(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,patient,Mass,Nodule\na.png,1,0,\nb.png,2,,\nc.png,3,0,1\n")
    assert check_labels(tmp_path).findings["No Finding"] == 1


def test_withdrawn_patients_are_counted_and_unknown_ids_told(tmp_path: Path) -> None:
    write_table(tmp_path, "a.png,Mass,0,1,50,F,PA", "b.png,Mass,0,2,50,F,PA")
    (tmp_path / "excluded_patients.txt").write_text("0002\n77\n")
    report = check_labels(tmp_path)
    found = outcome(report, "withdrawn")
    assert report.num_images == 1
    assert (found.status, found.summary) == ("warn", "2 patients listed, 1 of their images left out")
    assert "'77'" in found.details[0]


def test_nothing_to_read_is_a_fault_and_no_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        report = check_labels(root)
        assert report.num_images == 0
        assert len(report.faults) == 1
        assert report.status == "fail"


def test_a_folder_without_lists_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "sample_labels.csv").write_text(f"{HEADER}\na.png,Mass,0,1,50,F,PA\n")
    report = check_labels(tmp_path)
    assert report.to_json()["splits"] == {}
    assert outcome(report, "splits").status == "pass"
