"""The first form of the data check: counts of the real tables, and faults listed instead of raised."""

import json
import time
from pathlib import Path

import pytest

from aecnn.data.check.labels import check_labels

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"


def test_the_full_table_is_counted_as_published(real_data: Path) -> None:
    start_s = time.process_time()  # what the reader itself needs, however busy the machine is
    report = check_labels(real_data / "nih_metadata")
    assert time.process_time() - start_s < 5.0
    assert report.to_json() == {
        "num_images": 112_120,
        "num_patients": 30_805,
        "findings": {
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
        },
        "splits": {
            "train_val": {"num_images": 86_524, "num_patients": 28_008},
            "test": {"num_images": 25_596, "num_patients": 2_797},
        },
        "patients_in_several_splits": 0,
        "faults": [],
    }


@pytest.mark.parametrize("name", ["nih_64px", "nih_256px", "nih_1024px"])
def test_the_real_folders_have_no_faults(real_data: Path, name: str) -> None:
    report = check_labels(real_data / name)
    assert report.faults == ()
    assert sum(split.num_images for split in report.splits.values()) == report.num_images
    assert json.loads(json.dumps(report.to_json()))["num_patients"] == report.num_patients


def test_faults_are_listed_beside_the_counts_of_what_could_be_read(tmp_path: Path) -> None:
    rows = ["a.png,Mass,0,1,50,F,PA", "b.png,Mas,0,1,411Y,F,PA", "c.png,No Finding,0,2,50,F,PA", "d.png,Nodule"]
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *rows]))
    (tmp_path / "train_val_list.txt").write_text("a.png\nc.png")
    (tmp_path / "test_list.txt").write_text("b.png")
    report = check_labels(tmp_path)
    assert (report.num_images, report.num_patients, report.patients_in_several_splits) == (3, 2, 1)
    assert (report.findings["Mass"], report.findings["No Finding"]) == (1, 1)  # row 3 counts for neither
    assert report.splits["train_val"].num_images == 2
    assert len(report.faults) == 3
    assert "row 5: has 2 fields" in report.faults[0]
    assert "row 3: unknown finding 'Mas'; did you mean 'Mass'?" in report.faults[1]
    assert "'1'" in report.faults[2]
    assert len(report.warnings) == 1
    assert "warnings" not in report.to_json()


def test_nothing_to_read_is_a_fault_and_no_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        report = check_labels(root)
        assert report.num_images == 0
        assert len(report.faults) == 1


def test_a_folder_without_lists_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "sample_labels.csv").write_text(f"{HEADER}\na.png,Mass,0,1,50,F,PA\n")
    assert check_labels(tmp_path).to_json()["splits"] == {}
