"""``aecnn-simulate partition`` as a user meets it, and what a partition leaves in a folder and in its hospitals."""

import contextlib
import hashlib
import io
import json
import sys
import xml.etree.ElementTree as ET
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import yaml

import simulations.cli
from aecnn.config import PartitionConfig, ScannerConfig
from aecnn.data.manifest import read_manifest, read_split
from aecnn.findings import FINDINGS
from client.site import SiteConfig, read_hospital
from federation_in_process import small_config
from simulations.hospitals import write_hospitals
from simulations.partition_drawing import MAX_BARS, Bar, draw_partition
from simulations.runner import prepare_run
from simulations.scanners import draw_scanners


def _partition(*arguments, code=0):
    """Runs ``aecnn-simulate partition`` in this process; gives standard output and standard error."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    command = ["aecnn-simulate", "partition", *(str(argument) for argument in arguments)]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), patch.object(sys, "argv", command):
        try:
            simulations.cli.main()
        except SystemExit as end:
            status = end.code or 0
    assert status == code, stdout.getvalue() + stderr.getvalue()
    return stdout.getvalue(), stderr.getvalue()


def test_a_partition_leaves_three_files_that_agree_and_prints_its_hash(phantom_64px, tmp_path):
    out = tmp_path / "silos"
    shown, _ = _partition(phantom_64px, "--by", "labels", "--alpha", "0.5", "--hospitals", 3, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["partition.json", "partition.svg", "patients.csv"]
    record = json.loads((out / "partition.json").read_text(encoding="utf-8"))
    assert record["content_hash"] == hashlib.sha256((out / "patients.csv").read_bytes()).hexdigest()
    assert record["content_hash"] in shown
    assert all(str(out / name) in shown for name in ("partition.json", "partition.svg", "patients.csv"))
    assert (record["kind"], record["seed"], record["split"]) == ("labels", 0, "train_val")
    assert PartitionConfig.model_validate(record["settings"]) == PartitionConfig(
        by="labels", alpha=0.5, num_hospitals=3
    )
    drawing = ET.parse(out / "partition.svg")  # noqa: S314  our own file
    assert drawing.getroot().tag.endswith("svg")
    text = (out / "partition.svg").read_text(encoding="utf-8")
    assert all(name in text for name in (*record["hospitals"], "Hernia", "no finding", "α = 0.5"))


def test_the_record_counts_what_the_table_holds(phantom_64px, tmp_path):
    shown, _ = _partition(
        phantom_64px, "--by", "sex", "--alpha", 1, "--hospitals", 2, "--json", "--out", tmp_path / "o"
    )
    record = json.loads(shown)
    manifest = read_split(phantom_64px, "train_val", require_images=False)
    placed = pd.read_csv(tmp_path / "o" / "patients.csv", dtype=str).set_index("Patient ID")["Hospital"]
    assert set(placed.index) == set(manifest.patients)
    hospital = manifest.table["patient"].map(placed)
    for name, counts in record["hospitals"].items():
        rows = (hospital == name).to_numpy()
        own = manifest.select(rows)
        assert counts["num_images"] == rows.sum()
        assert counts["num_patients"] == len(own.patients)
        assert list(counts["positives"].values()) == (own.targets == 1).sum(axis=0).tolist()
        assert counts["num_without_finding"] == (own.targets == 0).all(axis=1).sum()
        assert counts["images_by_view"] == own.table["view"].value_counts().sort_index().to_dict()
        sexes = own.table.drop_duplicates("patient")["sex"].value_counts().to_dict()
        assert counts["patients_by"]["sex"] == {"F": sexes.get("F", 0), "M": sexes.get("M", 0)}
        assert sum(counts["patients_by"]["age"].values()) == counts["num_patients"]
    assert (record["num_images"], record["num_patients"]) == (len(manifest), len(manifest.patients))


def test_a_partition_can_be_read_back_with_the_same_hash_even_with_patients_left_out(phantom_64px, tmp_path):
    first, _ = _partition(
        phantom_64px,
        "--by",
        "age",
        "--alpha",
        1,
        "--hospitals",
        3,
        "--max-patients",
        8,
        "--json",
        "--out",
        tmp_path / "a",
    )
    file = tmp_path / "a" / "patients.csv"
    second, _ = _partition(phantom_64px, "--by", "manifest", "--file", file, "--json", "--out", tmp_path / "b")
    first, second = json.loads(first), json.loads(second)
    assert first["content_hash"] == second["content_hash"]
    assert first["num_patients_left_out"] == second["num_patients_left_out"] > 0
    assert first["hospitals"] == second["hospitals"]


def test_a_yaml_says_where_the_table_and_the_withdrawn_patients_are(tmp_path):
    (tmp_path / "own.csv").write_text("image,MRN,Mass\n" + "".join(f"{row}.png,{row},{row % 2}\n" for row in range(8)))
    (tmp_path / "withdrawn.txt").write_text("3\n99\n")
    data = {"root": str(tmp_path), "table": {"file": "own.csv", "patient_column": "MRN"}}
    (tmp_path / "site.yaml").write_text(json.dumps({"data": {**data, "excluded_patients": "withdrawn.txt"}}))
    out = tmp_path / "out"
    shown, _ = _partition(tmp_path / "site.yaml", "--hospitals", 2, "--json", "--out", out)
    assert json.loads(shown)["num_patients"] == 7
    patients = (out / "patients.csv").read_text().split()
    assert not any(line.startswith("3,") for line in patients)


def test_test_images_are_left_out_unless_asked_for_also_of_a_table_by_its_own_path(phantom_64px, tmp_path):
    manifest = read_manifest(phantom_64px, require_images=False)
    trains, tests = (len(manifest.of_split(split)) for split in ("train_val", "test"))
    table = next(phantom_64px.glob("Data_Entry*.csv"))
    for name, arguments, num_images in (
        ("default", [phantom_64px], trains),
        ("test", [phantom_64px, "--split", "test"], tests),
        ("all", [phantom_64px, "--split", "all"], trains + tests),
        ("table", [table], trains),
    ):
        shown, _ = _partition(*arguments, "--hospitals", 2, "--json", "--out", tmp_path / name)
        assert json.loads(shown)["num_images"] == num_images
    alone = tmp_path / "alone" / table.name
    alone.parent.mkdir()
    alone.write_bytes(table.read_bytes())
    _, told = _partition(alone, "--hospitals", 2, "--split", "test", "--out", tmp_path / "x", code=2)
    assert "no image in the split 'test'" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--by", "labels", "--hospitals", 3], "by: labels needs alpha"),
        (["--by", "sizes", "--sizes", "5,x"], "sizes.1: input should be a valid number"),
        (["--hospitals", 500], "patients for 500 hospitals: ask for fewer hospitals"),
        (["--by", "manifest", "--file", "absent.csv"], "absent.csv: cannot be read"),
    ],
)
def test_what_cannot_be_shared_out_is_told_in_a_sentence_and_leaves_nothing(arguments, told, phantom_64px, tmp_path):
    _, error = _partition(phantom_64px, *arguments, "--out", tmp_path / "out", code=2)
    assert told in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused_and_left_alone(phantom_64px, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    _, told = _partition(phantom_64px, "--hospitals", 2, "--out", tmp_path, code=2)
    assert "holds something already" in told
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_picture_is_the_same_for_the_same_partition(phantom_64px, tmp_path):
    for name in ("a", "b"):
        _partition(phantom_64px, "--by", "view", "--alpha", 1, "--hospitals", 3, "--out", tmp_path / name)
    assert (tmp_path / "a" / "partition.svg").read_bytes() == (tmp_path / "b" / "partition.svg").read_bytes()


@pytest.mark.slow
def test_of_very_many_hospitals_the_picture_shows_the_first_and_says_so():
    bar = Bar(num_patients=1, num_images=2, positives={"Mass": 1}, num_without_finding=1, groups={})
    text = draw_partition({f"h{number}": bar for number in range(MAX_BARS + 5)}, title="many")
    assert f"many (the first {MAX_BARS} of {MAX_BARS + 5})" in text
    assert f"h{MAX_BARS - 1}" in text
    assert f"h{MAX_BARS}" not in text


def test_a_run_leaves_the_record_of_its_partition_and_its_hospitals_hold_just_those_patients(phantom_64px, tmp_path):
    config = small_config(phantom_64px, partition={"by": "view", "alpha": 0.5, "num_hospitals": 3})
    folder = prepare_run(config, tmp_path / "run").folder
    record = json.loads((folder.path / "partition.json").read_text(encoding="utf-8"))
    placed = pd.read_csv(folder.path / "patients.csv", dtype=str)
    assert (folder.path / "partition.svg").stat().st_size > 1000
    for name, own in placed.groupby("Hospital"):
        hospital = read_hospital(folder.hospitals_folder / name / "site.yaml")
        assert set(hospital.manifest.patients) == set(own["Patient ID"])
        assert len(hospital.manifest) == record["hospitals"][name]["num_images"]


def test_a_simulated_hospital_has_all_of_the_datasets_settings_and_a_part_of_its_memory(tmp_path):
    data = {
        "root": str(tmp_path),
        "table": {"file": "own.csv", "finding_columns": {"Mass": "tumour"}, "not_labelled": ["-1"]},
        "excluded_patients": "gone.txt",
        "files": {"bits_stored": 12, "dicom_modalities": ["DX"]},
        "on_unreadable": "skip",
        "memory_limit_mb": 900,
        "use_cache": False,
        "cache_folder": str(tmp_path / "cache"),
    }
    config = small_config(tmp_path, data={**data, "phantom": {"num_patients": 9}})
    write_hospitals(config, {"a": ["1"], "b": ["2", "3"]}, tmp_path / "hospitals")
    written = SiteConfig.model_validate(yaml.safe_load((tmp_path / "hospitals" / "b" / "site.yaml").read_text())).data
    assert written.memory_limit_mb == 450
    kept = set(type(config.data).model_fields) - {"phantom", "memory_limit_mb"}
    assert {name: getattr(written, name) for name in kept} == {name: getattr(config.data, name) for name in kept}
    assert written.scanner is None
    assert (tmp_path / "hospitals" / "b" / "patients.txt").read_text().split() == ["2", "3"]


def test_by_scanner_the_first_hospital_is_the_reference_and_each_other_has_a_style_of_its_own(phantom_64px, tmp_path):
    config = small_config(phantom_64px, partition={"by": "scanner", "num_hospitals": 3})
    folder = prepare_run(config, tmp_path / "run").folder
    sites = [yaml.safe_load(path.read_text()) for path in sorted(folder.hospitals_folder.glob("*/site.yaml"))]
    scanners = [SiteConfig.model_validate(site).data.scanner for site in sites]
    assert scanners[0] == ScannerConfig()
    assert len(set(scanners)) == 3
    assert scanners == list(draw_scanners([site["name"] for site in sites], seed=config.seed).values())
    record = json.loads((folder.path / "partition.json").read_text(encoding="utf-8"))
    assert [ScannerConfig(**hospital["scanner"]) for hospital in record["hospitals"].values()] == scanners
    few, more = (draw_scanners([f"h{n}" for n in range(count)], seed=1) for count in (3, 30))
    assert list(more.items())[:3] == list(few.items())
    assert np.std([scanner.contrast for scanner in more.values()]) > 0.1


@pytest.mark.slow
def test_the_full_real_table_is_partitioned_from_the_command_line(real_data, tmp_path):
    shown, _ = _partition(
        real_data / "nih_metadata",
        "--by",
        "labels",
        "--alpha",
        0.5,
        "--hospitals",
        10,
        "--json",
        "--out",
        tmp_path / "o",
    )
    record = json.loads(shown)
    assert (record["num_images"], record["num_patients"], record["num_patients_left_out"]) == (86_524, 28_008, 0)
    hernias = sum(hospital["positives"]["Hernia"] for hospital in record["hospitals"].values())
    assert hernias == 125 + 16  # the AE-CNN training and validation lists, which together are the official train_val
    assert set(record["hospitals"]["hospital-01"]["positives"]) == set(FINDINGS)
