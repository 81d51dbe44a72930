"""The manifest reader against the real tables, against small tables with each fault, and against damaged bytes."""

import gzip
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn.data.columns import ages_years, canonical_patients
from aecnn.data.manifest import Manifest, parse_manifest, read_manifest
from aecnn.data.tables import read_list
from aecnn.errors import ManifestError
from aecnn.findings import FINDINGS

HEADER_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
HEADER_KAGGLE = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
)
HEADER_QUOTED = HEADER_2020.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"').replace(
    "OriginalImagePixelSpacing[x,y]", '"OriginalImagePixelSpacing[x,y]"'
)
TAIL = "2682,2749,0.143,0.143"
ROWS = (
    f"00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,{TAIL}",
    f"00000002_000.png,No Finding,0,2,80,F,AP,{TAIL}",
    f"00000002_001.png,Hernia,1,2,81,F,PA,{TAIL}",
)
IMAGES = tuple(row.split(",")[0] for row in ROWS)


def write_folder(
    root: Path,
    *,
    header: str = HEADER_2020,
    rows: tuple[str, ...] = ROWS,
    train_val: str | None = "00000001_000.png",
    test: str | None = "00000002_000.png\n00000002_001.png",
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *rows]))
    if train_val is not None:
        (root / "train_val_list.txt").write_text(train_val)
    if test is not None:
        (root / "test_list.txt").write_text(test)
    return root


def faults_of(root: Path, *, require_images: bool = False) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(root, require_images=require_images)
    return caught.value.faults


def findings_of(manifest: Manifest) -> list[set[str]]:
    return [{FINDINGS[index] for index in np.flatnonzero(row)} for row in manifest.targets]


@pytest.fixture(scope="module")
def full_table(real_data: Path) -> Manifest:
    return read_manifest(real_data / "nih_metadata", require_images=False)


def test_the_full_table_has_the_published_numbers(full_table: Manifest) -> None:
    assert len(full_table) == 112_120
    assert len(full_table.patients) == 30_805
    parts = {name: full_table.of_split(name) for name in ("train_val", "test")}
    assert {name: (len(part), len(part.patients)) for name, part in parts.items()} == {
        "train_val": (86_524, 28_008),
        "test": (25_596, 2_797),
    }
    assert full_table.table["age_years"].notna().all()
    assert full_table.warnings == ()


def test_the_authors_split_has_the_published_positives(full_table: Manifest, real_data: Path) -> None:
    published = {
        "train": [7333, 1491, 7641, 12151, 3534, 4175, 760, 2331, 2516, 1203, 1263, 1100, 1962, 125],
        "val": [947, 216, 1018, 1631, 500, 533, 116, 306, 336, 175, 160, 151, 280, 16],
        "test": [3255, 1065, 4648, 6088, 1712, 1615, 477, 2661, 1815, 925, 1093, 435, 1143, 86],
    }
    image = full_table.table["image"]
    found = {
        part: full_table.select(image.isin(read_list(real_data / "aecnn_split" / f"{part}_list.txt.gz")))
        for part in published
    }
    difference = {part: found[part].targets.sum(axis=0) - counts for part, counts in published.items()}
    assert not difference["train"].any()
    assert not difference["val"].any()
    # The test list was counted on the 2017 release; v2020 relabelled 181 images, all of them there, and so turned
    # 1,353 Pneumonia into the published 1,431.
    assert difference["test"].min() >= 0
    assert difference["test"][FINDINGS.index("Pneumonia")] == 1_431 - 1_353
    assert 181 <= difference["test"].sum() < 2 * 181
    assert {part: (len(rows), len(rows.patients)) for part, rows in found.items()} == {
        "train": (76_524, 24_862),
        "val": (10_000, 3_146),
        "test": (25_596, 2_797),
    }


@pytest.mark.parametrize("name", ["nih_64px", "nih_256px", "nih_1024px"])
def test_every_image_of_the_real_folders_is_found(real_data: Path, name: str) -> None:
    manifest = read_manifest(real_data / name)
    assert all(Path(path).is_file() for path in manifest.table["path"])
    assert [Path(path).name for path in manifest.table["path"]] == list(manifest.table["image"])
    assert manifest.table["split"].notna().all()


def test_the_kaggle_sample_agrees_with_the_official_table(full_table: Manifest, real_data: Path) -> None:
    sample = read_manifest(real_data / "nih_metadata" / "sample_labels_2017_kaggle5606.csv", require_images=False)
    assert len(sample) == 5_606
    split_of = dict(zip(full_table.table["image"], full_table.table["split"], strict=True))
    assert sample.table["split"].tolist() == [split_of[image] for image in sample.table["image"]]
    assert len(sample.warnings) == 1
    assert "1 ages" in sample.warnings[0]
    assert "'411Y'" in sample.warnings[0]
    assert int(sample.table["age_years"].isna().sum()) == 1
    rows = full_table.table.reset_index().set_index("image").loc[list(sample.table["image"]), "index"]
    official = full_table.select(rows.to_numpy())
    assert list(official.table["patient"]) == list(sample.table["patient"])  # 13 and 00000013 are one patient
    assert (official.targets != sample.targets).any(axis=1).sum() <= 181  # images relabelled in v2020


@pytest.mark.parametrize(
    "header",
    [HEADER_2020, HEADER_2020 + ",", HEADER_KAGGLE, HEADER_QUOTED, "\ufeff" + HEADER_2020, HEADER_2020.upper()],
    ids=["v2020", "2017", "kaggle", "quoted", "byte-order-mark", "capitals"],
)
@pytest.mark.parametrize("row_end", ["", ","])
def test_every_known_header_gives_the_same_rows(tmp_path: Path, header: str, row_end: str) -> None:
    manifest = read_manifest(
        write_folder(tmp_path, header=header, rows=tuple(row + row_end for row in ROWS)), require_images=False
    )
    assert list(manifest.table["image"]) == list(IMAGES)
    assert list(manifest.table["patient"]) == ["1", "2", "2"]
    assert list(manifest.table["age_years"]) == [57.0, 80.0, 81.0]
    assert list(manifest.table["sex"]) == ["M", "F", "F"]
    assert list(manifest.table["view"]) == ["PA", "AP", "PA"]
    assert list(manifest.table["split"]) == ["train_val", "test", "test"]
    assert findings_of(manifest) == [{"Cardiomegaly", "Emphysema"}, set(), {"Hernia"}]


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_line_endings_and_packing_change_nothing(tmp_path: Path, ending: str, packed: bool) -> None:
    plain = write_folder(tmp_path / "a")
    other = tmp_path / "b"
    other.mkdir()
    for path in plain.iterdir():
        content = path.read_text().replace("\n", ending).encode()
        (other / (path.name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    expected, found = (read_manifest(root, require_images=False) for root in (plain, other))
    assert found.table.equals(expected.table)
    assert np.array_equal(found.targets, expected.targets)


def test_images_are_found_in_flat_and_in_numbered_folders(tmp_path: Path) -> None:
    write_folder(tmp_path)
    places = [tmp_path / "images_001" / "images", tmp_path / "images_012" / "images", tmp_path / "images"]
    for place, name in zip(places, IMAGES, strict=True):
        place.mkdir(parents=True)
        (place / name).touch()
        (place / f"._{name}").touch()  # what a Mac leaves behind
    manifest = read_manifest(tmp_path)
    assert list(manifest.table["path"]) == [str(place / name) for place, name in zip(places, IMAGES, strict=True)]


def test_a_folder_without_lists_has_no_splits(tmp_path: Path) -> None:
    manifest = read_manifest(write_folder(tmp_path, train_val=None, test=None), require_images=False)
    assert manifest.table["split"].isna().all()


def test_missing_columns_of_no_importance_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_text("Patient ID,Image Index,Finding Labels\n1,a.png,Mass\n")
    manifest = read_manifest(tmp_path, require_images=False)
    assert manifest.table[["age_years", "sex", "view", "split", "path"]].isna().all(axis=None)
    assert manifest.warnings == ()


def test_all_faults_are_told_at_once_with_their_rows(tmp_path: Path) -> None:
    rows = (
        f"a.png,Pneumonja,0,1,57,M,PA,{TAIL}",
        f"b.png,Mass,0,2,57,M,PA,{TAIL}",
        f"b.png,Mass,0,2,57,M,PA,{TAIL}",
        f"c.png,,0,3,57,M,PA,{TAIL}",
        f"d.png,Mass|No Finding,0,,57,M,PA,{TAIL}",
        f"../e.png,Mass,0,5,57,M,PA,{TAIL}",
        "f.png,Mass",
        f"g.png,Mass,0,6,57,M,PA,{TAIL}",
        f"h.png,Mass,0,6,57,M,PA,{TAIL}",
        f"i.png,Mass,0,7,57,M,PA,{TAIL}",
    )
    listed = "a.png\nb.png\nc.png\nd.png\n../e.png\ng.png\nghost.png\na.png"
    root = write_folder(tmp_path, rows=rows, train_val=listed, test="h.png\na.png")
    (tmp_path / "images").mkdir()
    faults = "\n".join(faults_of(root, require_images=True))
    for expected in (
        "row 2: unknown finding 'Pneumonja'; did you mean 'Pneumonia'?",
        "row 4: image 'b.png' is already in row 3",
        "row 5: no finding is given: write 'No Finding'",
        "row 6: 'Mass|No Finding' says 'No Finding' beside a finding",
        "row 6: no patient is given",
        "row 7: image '../e.png' is not a plain file name",
        "row 8: has 2 fields, the header 11",
        "row 2: image 'a.png' is in both train_val_list.txt and test_list.txt",
        "row 11: image 'i.png' is neither in train_val_list.txt nor in test_list.txt",
        "train_val_list.txt line 7: image 'ghost.png' is not in Data_Entry_2017_v2020.csv",
        "train_val_list.txt line 8: image 'a.png' is listed again",
        "1 patient has images in both train_val_list.txt and test_list.txt: '6'",
        "row 3: image 'b.png' is not in images",
    ):
        assert expected in faults


def test_patients_in_both_lists_are_counted_and_named(tmp_path: Path) -> None:
    rows = tuple(f"{patient}_{number}.png,Mass,0,{patient},5,M,PA,{TAIL}" for patient in (7, 8, 9) for number in (0, 1))
    root = write_folder(tmp_path, rows=rows, train_val="7_0.png\n8_0.png\n9_0.png\n9_1.png", test="7_1.png\n8_1.png")
    assert len(faults_of(root)) == 1
    assert "2 patients have images in both" in faults_of(root)[0]
    assert "'7', '8';" in faults_of(root)[0]


def test_one_list_without_the_other_is_refused(tmp_path: Path) -> None:
    assert "test_list.txt is missing" in faults_of(write_folder(tmp_path, test=None))[0]


def test_several_tables_are_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "Data_Entry_2017.csv").write_text(HEADER_2020)
    assert "2 tables (Data_Entry_2017.csv, Data_Entry_2017_v2020.csv)" in faults_of(root)[0]


def test_a_folder_without_a_table_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "looked for Data_Entry_2017*.csv or sample_labels*.csv" in faults_of(tmp_path)[0]
    assert "there is no folder" in faults_of(tmp_path / "nowhere")[0]


def test_images_without_any_folder_are_one_fault(tmp_path: Path) -> None:
    faults = faults_of(write_folder(tmp_path), require_images=True)
    assert len(faults) == 1
    assert "no folder of images" in faults[0]


def test_the_same_file_in_two_folders_is_a_fault(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for place in (tmp_path / "images", tmp_path / "images_001" / "images"):
        place.mkdir(parents=True)
        for name in IMAGES:
            (place / name).touch()
    assert [IMAGES[0] in fault for fault in faults_of(tmp_path, require_images=True)] == [True, False, False]


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_text("Image,Label\na.png,Mass\n")
    assert [fault.split("column ")[1].split(" in")[0] for fault in faults_of(tmp_path)] == [
        "'Image Index'",
        "'Finding Labels'",
        "'Patient ID'",
    ]


@pytest.mark.parametrize(
    ("cell", "years"),
    [("57", 57.0), ("060Y", 60.0), ("013M", 13 / 12), ("001D", 1 / 365.25), ("0", 0.0), ("120", 120.0)],
)
def test_ages_are_years_whatever_their_unit(cell: str, years: float) -> None:
    assert ages_years(pd.Series([cell]), warnings=[])[0] == pytest.approx(years)


def test_impossible_ages_are_unknown_and_counted() -> None:
    warnings: list[str] = []
    ages = ages_years(pd.Series(["411Y", "121", "-1", "old", "", "1e3", "30"]), warnings=warnings)
    assert ages.isna().tolist() == [True] * 6 + [False]
    assert len(warnings) == 1
    assert warnings[0].startswith("5 ages")  # an empty cell is unknown, and nothing to warn of


def test_patients_are_numbers_without_leading_zeros_or_any_other_text() -> None:
    cells = pd.Series(["00000013", "13", "0", "000", "", "A-007", "007a", "0007"])
    assert canonical_patients(cells).tolist() == ["13", "13", "0", "0", "", "A-007", "007a", "7"]


def test_selecting_keeps_rows_and_targets_together(full_table: Manifest) -> None:
    rows = np.random.default_rng(3).permutation(len(full_table))[:1000]
    selected = full_table.select(rows)
    assert list(selected.table.index) == list(range(1000))
    assert list(selected.table["image"]) == list(full_table.table["image"].iloc[rows])
    assert np.array_equal(selected.targets, full_table.targets[rows])
    mask = np.zeros(len(full_table), dtype=bool)
    mask[rows] = True
    assert set(full_table.select(mask).table["image"]) == set(selected.table["image"])
    with pytest.raises(IndexError, match="mask"):
        full_table.select(mask[:-1])


def test_restricting_to_patients_takes_all_their_images(full_table: Manifest) -> None:
    few = full_table.patients[::3000]
    part = full_table.of_patients(few)
    assert part.patients == few
    assert len(part) == sum(full_table.table["patient"].isin(few))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One of the ways in which a table arrives damaged."""
    kind = draw.randrange(8)
    cut = draw.randrange(len(content))
    lines = content.split(b"\n")
    if kind == 0:
        return content[:cut]
    if kind == 1:
        return content[:cut] + bytes(draw.randrange(256) for _ in range(8)) + content[cut + 8 :]
    if kind == 2:
        return draw.randbytes(draw.randrange(1, 4000))
    if kind == 3:
        return content.replace(b",", draw.choice([b";", b"\t", b",,", b"", b'"']))
    if kind == 4:
        lines[draw.randrange(len(lines))] = draw.choice([b"", b'"', b",,,", b"\0", b"a" * 200_000, b"," * 5000])
        return b"\n".join(lines)
    if kind == 5:
        return gzip.compress(content)[: draw.randrange(1, 400)]
    if kind == 6:
        return content.decode().encode(draw.choice(["utf-16", "utf-32"]))
    return b"\n".join(draw.sample(lines, k=len(lines)))


@pytest.mark.parametrize("target", ["Data_Entry_2017_v2020.csv", "train_val_list.txt"])
@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_table_is_read_or_refused_by_name_and_nothing_else(tmp_path: Path, seed: int, target: str) -> None:
    rows = tuple(f"{n:08}_000.png,{FINDINGS[n % 14]},0,{n},{n},M,PA,{TAIL}" for n in range(40))
    names = [row.split(",")[0] for row in rows]
    root = write_folder(tmp_path, rows=rows, train_val="\n".join(names[:30]), test="\n".join(names[30:]))
    path = root / target
    path.write_bytes(mutated(path.read_bytes(), random.Random(seed)))
    parsed = parse_manifest(root, require_images=False)
    manifest, faults = parsed.manifest, parsed.faults
    assert manifest is not None or faults
    if faults:
        message = str(ManifestError(root, faults_of(root)))
        assert target in message
        assert max(len(fault) for fault in faults) < 1000


@pytest.mark.parametrize(
    "content", [b"", b"\n\n\n", HEADER_2020.encode(), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff" * 50]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_bytes(content)
    assert "Data_Entry_2017.csv" in faults_of(tmp_path)[0]


@given(st.lists(st.sets(st.sampled_from(FINDINGS)), min_size=1, max_size=30), st.randoms())
def test_findings_written_in_any_order_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, findings: list[set[str]], draw: random.Random
) -> None:
    rows = []
    for number, names in enumerate(findings):
        cell = "|".join(draw.sample(sorted(names), k=len(names))) or "No Finding"
        rows.append(f"{number}.png,{cell},0,{number},5,M,PA,{TAIL}")
    root = write_folder(tmp_path_factory.mktemp("t"), rows=tuple(rows), train_val=None, test=None)
    assert findings_of(read_manifest(root, require_images=False)) == findings
