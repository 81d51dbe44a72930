"""A hospital's own table: mapped columns, default columns, folders of images, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecnn.config import DatasetConfig, TableConfig, validate_config
from aecnn.data.manifest import read_manifest
from aecnn.errors import ConfigError, ManifestError
from aecnn.findings import FINDINGS, finding_index

EFFUSION, MASS, HERNIA = (finding_index(name) for name in ("Effusion", "Mass", "Hernia"))


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32)).save(root / name)


def faults_of(dataset: DatasetConfig | Path) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(dataset)
    return caught.value.faults


def test_default_columns_need_no_mapping(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("Image,patient,Effusion,Pleural thickening\na.png,007,1,\nb.png,8,0,1\n")
    for dataset in (tmp_path, tmp_path / "labels.csv"):
        manifest = read_manifest(dataset)
        assert list(manifest.table["patient"]) == ["7", "8"]
        assert manifest.targets[:, EFFUSION].tolist() == [1, 0]
        assert np.isnan(manifest.targets[0, finding_index("Pleural_Thickening")])
        assert np.isnan(manifest.targets[:, HERNIA]).all()
        assert "no column for Atelectasis" in manifest.warnings[0]
        assert manifest.table["path"].tolist() == [str(tmp_path / "images" / name) for name in ("a.png", "b.png")]


def test_a_mapping_finds_columns_folders_splits_and_cells_that_mean_not_labelled(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", "p1/s1/x.png", "p1/s2/x.png", "p2/y.png")
    (tmp_path / "export.csv").write_text(
        "File,MRN,Years,Gender,Projection,Part,pleural effusion,mass (>3cm)\n"
        "p1/s1/x.png,A1,057Y,Female,pa,train,1,-1\np1/s2/x.png,A1,58,F,AP,val,0.0,0\np2/y.png,B2,,M,,test,,1.0\n"
    )
    table = TableConfig(
        file="export.csv",
        images_folder="scans",
        image_column="file",
        patient_column="mrn",
        age_column="years",
        sex_column="gender",
        view_column="projection",
        split_column="part",
        finding_columns={"effusion": "Pleural Effusion", "Mass": "mass (>3cm)"},
        not_labelled=("-1",),
    )
    manifest = read_manifest(DatasetConfig(root=tmp_path, table=table))
    assert list(manifest.table["split"]) == ["train_val", "train_val", "test"]
    assert list(manifest.table["view"].fillna("")) == ["PA", "AP", ""]
    assert list(manifest.table["sex"]) == ["F", "F", "M"]
    assert manifest.table["age_years"].tolist()[:2] == [57, 58]
    np.testing.assert_array_equal(manifest.targets[:, [EFFUSION, MASS]], [[1, np.nan], [0, 0], [np.nan, 1]])
    assert all(Path(path).is_file() for path in manifest.table["path"])


def test_all_faults_of_cells_are_told_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png")
    rows = ["a.png,1,train,yes", "../a.png,2,train,0", "/etc/passwd,3,test,0", "gone.png,1,tset,1", "a.png,,test,0"]
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,part,Mass", *rows]))
    faults = "\n".join(faults_of(DatasetConfig(root=tmp_path, table=TableConfig(split_column="part"))))
    for told in (
        "row 2: Mass is 'yes': write 1, 0 or nothing",
        "row 3: image '../a.png' is not a file below the folder",
        "row 4: image '/etc/passwd' is not a file below the folder",
        "row 5: split 'tset' is none of train_val",
        "row 5: image 'gone.png' is not in images",
        "row 6: no patient is given",
        "row 6: image 'a.png' is already in row 2",
    ):
        assert told in faults


def test_a_patient_in_two_splits_of_the_column_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("image,patient,part,Mass\na.png,01,train,0\nb.png,1,test,0\n")
    faults = faults_of(DatasetConfig(root=tmp_path, table=TableConfig(split_column="part")))
    assert faults == (
        "1 patient has images in both train_val and test: '1'; keep each patient's images in one of them",
    )


def test_a_forgotten_split_is_a_fault_and_no_split_at_all_is_none(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png")
    config = DatasetConfig(root=tmp_path, table=TableConfig(split_column="part"))
    (tmp_path / "labels.csv").write_text("image,patient,part,Mass\na.png,1,test,0\nb.png,1,,1\n")
    assert "row 3: split '' is none of" in faults_of(config)[0]
    (tmp_path / "labels.csv").write_text("image,patient,part,Mass\na.png,1,,0\nb.png,1,,1\n")
    assert read_manifest(config).table["split"].isna().all()


def test_images_may_lie_outside_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "archive", "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.csv").write_text("image,patient,Mass\na.png,1,0\nb.png,2,0\n")
    config = DatasetConfig(root=tmp_path / "data", table=TableConfig(images_folder=str(tmp_path / "archive")))
    assert faults_of(config) == ("labels.csv row 3: image 'b.png' is not in ../archive: add it or remove the row",)


def test_missing_columns_are_named_with_their_keys_and_the_nearest_heading(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,pateint,Efusion\na.png,1,0\n")
    assert "no column 'patient' in the header; did you mean 'pateint'?" in faults_of(tmp_path)[0]
    (tmp_path / "labels.csv").write_text("image,patient,Efusion\na.png,1,0\n")
    assert "no column of a finding" in faults_of(tmp_path)[0]
    mapping = TableConfig(finding_columns={"Effusion": "Effusion"})
    fault = faults_of(DatasetConfig(root=tmp_path, table=mapping))[0]
    assert "no column 'Effusion' in the header; did you mean 'Efusion'? (data.table.finding_columns.Effusion)" in fault
    with pytest.raises(ManifestError, match=r"there is no table .*absent\.csv \(data\.table\.file\)"):
        read_manifest(DatasetConfig(root=tmp_path, table=TableConfig(file="absent.csv")))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_than_a_comma_is_told_once(tmp_path: Path, mark: str) -> None:
    (tmp_path / "labels.csv").write_text(
        mark.join(["image", "patient", "Mass"]) + "\n" + mark.join(["a.png", "1", "0"])
    )
    assert len(faults_of(tmp_path)) == 1
    assert "save it comma-separated" in faults_of(tmp_path)[0]


def test_a_heading_that_looks_like_a_finding_and_is_none_is_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png")
    (tmp_path / "labels.csv").write_text("image,patient,Mass,Nodul\na.png,1,0,1\n")
    assert any(
        "column 'Nodul' is not used; did you mean 'Nodule'?" in text for text in read_manifest(tmp_path).warnings
    )


def test_a_mapping_of_an_unknown_finding_is_refused_with_the_nearest() -> None:
    table = {"root": ".", "table": {"finding_columns": {"Efusion": "x"}}}
    with pytest.raises(ConfigError, match="did you mean 'Effusion'"):
        validate_config(table, DatasetConfig, subject="site.yaml")
    table = {"root": ".", "table": {"finding_columns": {"Mass": "x", "mass": "y"}}}
    with pytest.raises(ConfigError, match="twice"):
        validate_config(table, DatasetConfig, subject="site.yaml")


def test_an_own_table_says_the_same_as_the_official_one(real_data: Path, tmp_path: Path) -> None:
    official = read_manifest(real_data / "nih_64px")
    lines = ["image,patient,age,sex,view,split," + ",".join(FINDINGS)]
    for row, targets in zip(official.table.itertuples(), official.targets.astype(int), strict=True):
        cells = (row.image, row.patient, row.age_years, row.sex, row.view, row.split, *targets)
        lines.append(",".join(str(cell) for cell in cells))
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    columns = {f"{name}_column": name for name in ("age", "sex", "view", "split")}
    own = read_manifest(DatasetConfig(root=tmp_path, table=TableConfig(**columns)), require_images=False)
    np.testing.assert_array_equal(own.targets, official.targets)
    columns_kept = ["image", "patient", "age_years", "sex", "view", "split"]
    assert own.table[columns_kept].equals(official.table[columns_kept])
