"""The phantom: official layout, same bytes for the same configuration, and lesions that carry all there is to learn."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from aecnn.config import PhantomConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.phantom import draw_patient, draw_population, render_patient, write_phantom
from aecnn.data.phantom.anatomy import LEFT, RIGHT
from aecnn.data.phantom.lesions import Lesion
from aecnn.data.phantom.oracle import expected_auroc, oracle_auroc
from aecnn.data.phantom.population import (
    PRESETS,
    Patient,
    copula_correlation,
    draw_lesion_template,
    draw_severities,
    with_severity,
)
from aecnn.errors import ManifestError
from aecnn.findings import FINDINGS, NO_FINDING

SMALL = PhantomConfig(num_patients=12, image_size_px=32, seed=7)
UNILATERAL = (
    *("Atelectasis", "Effusion", "Infiltration", "Mass", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Pleural_Thickening"),
)


@pytest.fixture(scope="module")
def small_phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "small"
    write_phantom(root, SMALL)
    return root


def _bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---- the official layout


def test_a_phantom_reads_as_an_official_dataset_with_what_was_drawn(small_phantom: Path) -> None:
    manifest = read_manifest(small_phantom)
    rows = {
        row.image: (row, targets) for row, targets in zip(manifest.table.itertuples(), manifest.targets, strict=True)
    }
    drawn = draw_population(SMALL)
    assert len(rows) == sum(len(patient.exposures) for patient in drawn)
    for patient in drawn:
        for exposure in patient.exposures:
            row, targets = rows[f"{patient.number:08d}_{exposure.index:03d}.png"]
            assert (int(row.patient), row.sex, row.view) == (patient.number, patient.sex, exposure.view)
            assert (row.split, row.age_years) == (patient.split, exposure.age_years)
            assert {FINDINGS[i] for i in np.flatnonzero(targets)} == set(exposure.findings)


def test_the_tables_keep_the_quirks_of_the_official_files(small_phantom: Path) -> None:
    header = (small_phantom / "Data_Entry_2017_v2020.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    for name in ("train_val_list.txt", "test_list.txt"):
        assert not (small_phantom / name).read_text(encoding="utf-8").endswith("\n")


def test_images_are_eight_bit_grey_of_the_size_asked_for(small_phantom: Path) -> None:
    for path in (small_phantom / "images").iterdir():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


def test_every_hospital_has_patients_in_both_splits_and_a_quarter_is_for_testing() -> None:
    patients = draw_population(PhantomConfig(num_patients=120, num_hospitals=4))
    for hospital in range(4):
        mine = [patient for patient in patients if patient.hospital == hospital]
        assert len(mine) == 30
        assert sum(patient.split == "test" for patient in mine) in (7, 8)


@pytest.mark.parametrize("num_patients", [2, 3, 5, 11])
def test_even_a_handful_of_patients_has_both_splits(num_patients: int) -> None:
    patients = draw_population(PhantomConfig(num_patients=num_patients, num_hospitals=3))
    assert {patient.split for patient in patients} == {"train_val", "test"}


def test_the_report_in_the_folder_counts_the_table(small_phantom: Path) -> None:
    document = json.loads((small_phantom / "phantom.json").read_text(encoding="utf-8"))
    manifest = read_manifest(small_phantom)
    report = document["report"]
    assert PhantomConfig.model_validate(document["config"]) == SMALL
    assert report["num_images"] == len(manifest)
    assert report["num_test_patients"] == manifest.table.loc[manifest.table["split"] == "test", "patient"].nunique()
    shares = dict(zip(FINDINGS, manifest.targets.mean(axis=0).tolist(), strict=True))
    shares[NO_FINDING] = float((manifest.targets.sum(axis=1) == 0).mean())
    assert report["prevalence"] == pytest.approx(shares, abs=1e-6)


# ---- whole or not at all, and the same bytes again


def test_the_same_configuration_gives_the_same_bytes(small_phantom: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "again", SMALL)
    assert _bytes_of(tmp_path / "again") == _bytes_of(small_phantom)


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_a_byte(small_phantom: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "by-two", SMALL, num_workers=2)
    assert _bytes_of(tmp_path / "by-two") == _bytes_of(small_phantom)


def test_an_existing_phantom_of_the_same_configuration_is_reused(small_phantom: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_phantom.rglob("*")}
    steps: list[tuple[int, int]] = []
    report = write_phantom(small_phantom, SMALL, on_progress=lambda done, total: steps.append((done, total)))
    assert report.num_patients == 12
    assert steps == []
    assert before == {path: path.stat().st_mtime_ns for path in small_phantom.rglob("*")}


def test_a_phantom_of_another_configuration_is_refused_with_every_difference(small_phantom: Path) -> None:
    other = SMALL.model_copy(update={"seed": 8, "preset": "nih"})
    with pytest.raises(ManifestError) as caught:
        write_phantom(small_phantom, other)
    assert len(caught.value.faults) == 2
    assert "seed 7" in str(caught.value)
    assert "asked for is 'nih'" in str(caught.value)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(ManifestError, match="choose another folder"):
        write_phantom(tmp_path, SMALL)
    assert _bytes_of(tmp_path) == {"thesis.txt": b"precious"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_phantom(tmp_path / "empty", SMALL.model_copy(update={"num_patients": 2}))
    assert len(read_manifest(tmp_path / "empty").patients) == 2


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ManifestError, match="choose a folder you may write to"):
        write_phantom(tmp_path / "file" / "phantom", SMALL)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "phantom").write_text("", encoding="utf-8")
    with pytest.raises(ManifestError, match="is a file"):
        write_phantom(tmp_path / "phantom", SMALL)


def test_an_interrupted_generation_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "phantom", SMALL, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


# ---- the pictures


def test_the_same_patient_looks_the_same_at_any_size() -> None:
    config = PhantomConfig(seed=5)
    for number in (1, 2, 3):
        patient = draw_patient(config, number, hospital=number - 1)
        large = render_patient(patient, config, size_px=512)[0].reshape(128, 4, 128, 4).mean(axis=(1, 3))
        small = render_patient(patient, config, size_px=128)[0]
        assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.99


def test_follow_ups_look_more_like_their_patient_than_like_others() -> None:
    config = PhantomConfig(seed=3)
    bodies = [draw_patient(config, number, hospital=0) for number in range(1, 60)]
    several = [body for body in bodies if len(body.exposures) >= 3][:8]
    pictures = [render_patient(body, config, size_px=32, lesions=False)[:3].astype(float) for body in several]
    within = [np.abs(p[i] - p[j]).mean() for p in pictures for i, j in ((0, 1), (0, 2), (1, 2))]
    between = [np.abs(p[0] - q[0]).mean() for i, p in enumerate(pictures) for q in pictures[:i]]
    assert np.mean(within) < 0.9 * np.mean(between)


def test_hospitals_differ_in_style_by_more_than_exposures_of_one_hospital() -> None:
    config = PhantomConfig(seed=4, num_hospitals=5)
    patient = draw_patient(config, 1, hospital=0)
    pictures = [render_patient(replace(patient, hospital=h), config, size_px=32)[0].astype(float) for h in range(5)]
    spread = [np.abs(p - q).mean() for i, p in enumerate(pictures) for q in pictures[:i]]
    assert min(spread) > 3.0  # of 255 grey levels


def _difference(lesion: Lesion, *, number: int = 1) -> NDArray[np.float64]:
    """What one lesion changes in one picture, in grey levels [64, 64]."""
    config = PhantomConfig(seed=11)
    patient = draw_patient(config, number, hospital=0)
    exposure = replace(patient.exposures[0], lesions=(lesion,))
    one = replace(patient, exposures=(exposure,))
    with_it, without = (render_patient(one, config, size_px=64, lesions=shown)[0] for shown in (True, False))
    return with_it.astype(float) - without.astype(float)


def _lesion(finding: str, *, side: int = RIGHT, severity: float = 1.0) -> Lesion:
    template = draw_lesion_template(finding, np.random.default_rng(2))
    return with_severity(replace(template, side=side), severity)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_lesion_grows_with_its_severity_from_nothing(finding: str) -> None:
    energies = [np.square(_difference(_lesion(finding, severity=s))).mean() for s in (0.0, 0.3, 0.6, 1.0)]
    assert energies[0] == 0.0
    assert energies == sorted(energies)
    assert energies[-1] > 4.0


@pytest.mark.parametrize("finding", UNILATERAL)
@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_a_one_sided_lesion_lies_in_its_lung(finding: str, side: int) -> None:
    change = np.abs(_difference(_lesion(finding, side=side)))
    half = {RIGHT: change[:, :32].sum(), LEFT: change[:, 32:].sum()}  # the patient's right is on the image's left
    assert half[side] > 0.8 * (half[LEFT] + half[RIGHT])


def test_each_finding_changes_the_picture_where_it_belongs() -> None:
    across, down = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))

    def mean_of(finding: str, values: NDArray[np.float64]) -> float:
        change = np.abs(_difference(_lesion(finding)))
        return float((change * values).sum() / change.sum())

    assert mean_of("Effusion", down) > 0.25  # at the base
    assert mean_of("Consolidation", down) < -0.1  # the upper lobe
    assert mean_of("Pneumothorax", np.abs(across)) > mean_of("Edema", np.abs(across))  # at the wall, by the hila
    assert mean_of("Pleural_Thickening", np.abs(across)) > 0.5
    assert mean_of("Hernia", np.abs(across)) < 0.2  # behind the heart
    assert mean_of("Cardiomegaly", across) > 0.1  # more to the patient's left
    assert _difference(_lesion("Pneumothorax")).min() < -10  # free air is dark
    assert _difference(_lesion("Emphysema")).mean() < 0 < _difference(_lesion("Edema")).mean()


# ---- the population


def test_the_copula_is_a_correlation_matrix() -> None:
    matrix = copula_correlation()
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(np.diag(matrix), np.ones(14))
    assert np.linalg.eigvalsh(matrix).min() > 0.05


def _targets(patients: tuple[Patient, ...]) -> NDArray[np.bool_]:
    return np.array([[name in e.findings for name in FINDINGS] for p in patients for e in p.exposures])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_the_demo_every_finding_is_in_five_per_cent_of_the_images(seed: int) -> None:
    targets = _targets(draw_population(PhantomConfig(num_patients=400, seed=seed)))
    assert targets.mean(axis=0).min() >= 0.05


@pytest.mark.slow
def test_the_nih_preset_has_the_prevalence_co_occurrence_and_skew_of_chest_xray14() -> None:
    patients = draw_population(PhantomConfig(num_patients=2500, preset="nih", seed=1))
    targets, counts = _targets(patients), np.array([len(patient.exposures) for patient in patients])
    published = {"Infiltration": 0.1774, "Effusion": 0.1188, "Atelectasis": 0.1031, "Nodule": 0.0565, "Mass": 0.0516}
    for finding, share in published.items():
        assert targets[:, FINDINGS.index(finding)].mean() == pytest.approx(share, rel=0.2)
    one, other = (targets[:, FINDINGS.index(name)] for name in ("Pneumothorax", "Emphysema"))
    assert (one & other).mean() / (one.mean() * other.mean()) > 2.0  # 6.3 in ChestX-ray14
    assert np.median(counts) == 1
    assert np.sort(counts)[-250:].sum() / counts.sum() == pytest.approx(0.46, abs=0.08)  # top tenth of patients
    assert (targets.sum(axis=1) == 0).mean() == pytest.approx(0.54, abs=0.06)


# ---- the oracle


def test_the_oracle_integrates_gaussian_noise_as_the_closed_form_says() -> None:
    separation, sigma = 1.3, 0.8
    area = expected_auroc(np.full(3, separation), np.zeros(3), np.full(3, sigma))
    assert area == pytest.approx(0.5 * (1 + math.erf(separation / sigma / 2.0)))
    assert expected_auroc(np.zeros(3), np.zeros(3), np.ones(3)) == pytest.approx(0.5)


def test_the_oracle_agrees_with_scores_drawn_at_random() -> None:
    rng = np.random.default_rng(0)
    diseased, healthy, errors = rng.normal(1, 0.3, 20), rng.uniform(0, 0.9, 20), rng.uniform(0.1, 0.6, 20)
    scores = np.concatenate([np.repeat(diseased, 2000), np.repeat(healthy, 2000)])
    scores += rng.standard_normal(len(scores)) * np.tile(np.repeat(errors, 2000), 2)
    drawn = roc_auc_score(np.repeat([1, 0], 40_000), scores)
    assert expected_auroc(diseased, healthy, errors) == pytest.approx(drawn, abs=0.005)


@pytest.mark.slow
def test_the_oracle_finds_demo_lesions_easier_than_realistic_ones_and_none_certain() -> None:
    demo, nih = (oracle_auroc(PhantomConfig(preset=preset)) for preset in ("demo", "nih"))
    assert set(demo) == set(nih) == set(FINDINGS)
    assert 0.9 < min(demo.values()) <= max(demo.values()) < 1.0
    assert min(nih.values()) > 0.8
    assert np.mean(list(nih.values())) < np.mean(list(demo.values()))


def test_some_variants_of_normal_are_worse_than_some_lesions() -> None:
    rng, present = np.random.default_rng(1), np.repeat([True, False], 5000)
    severities = draw_severities(PRESETS["nih"], rng, present)
    assert severities[~present].max() > severities[present].min() > 0
    assert (severities[~present] > 0).mean() == pytest.approx(PRESETS["nih"].variant_rate, abs=0.03)


# ---- the controls: without lesions, and with shuffled targets, there is nothing to learn

Interval = tuple[float, float, float]  # lower end, macro AUROC, upper end


def _learnt(pictures: NDArray[np.float64], targets: NDArray[np.bool_], patients: NDArray[np.int64]) -> Interval:
    """Macro AUROC of logistic regressions on pixels for unseen patients, and its 99 % interval over patients."""
    unseen = patients % 2 == 0
    scale = StandardScaler().fit(pictures[~unseen])
    seen_pixels, unseen_pixels = scale.transform(pictures[~unseen]), scale.transform(pictures[unseen])
    models = [LogisticRegression(C=1e-3, max_iter=100).fit(seen_pixels, column) for column in targets[~unseen].T]
    scores = np.stack([model.decision_function(unseen_pixels) for model in models], axis=1)
    truth, owners = targets[unseen], patients[unseen]
    rows_of = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
    rng = np.random.default_rng(0)
    draws = [np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))]) for _ in range(100)]
    areas = np.sort([roc_auc_score(truth[rows], scores[rows]) for rows in draws])
    return float(areas[0]), float(roc_auc_score(truth, scores)), float(areas[-1])


def _pixels(patients: tuple[Patient, ...], config: PhantomConfig, *, lesions: bool) -> NDArray[np.float64]:
    pictures = np.concatenate([render_patient(patient, config, lesions=lesions) for patient in patients]).astype(float)
    return pictures.reshape(len(pictures), 16, 4, 16, 4).mean(axis=(2, 4)).reshape(len(pictures), -1)


@pytest.mark.slow
def test_only_lesions_can_be_learnt_and_only_with_their_own_targets() -> None:
    config = PhantomConfig(num_patients=240, image_size_px=64, seed=2)
    patients = draw_population(config)
    targets = _targets(patients)
    owners = np.repeat([patient.number for patient in patients], [len(patient.exposures) for patient in patients])
    shown, bare = (_pixels(patients, config, lesions=lesions) for lesions in (True, False))
    shuffled = targets[np.random.default_rng(3).permutation(len(targets))]
    lower, area, _ = _learnt(shown, targets, owners)
    assert lower > 0.62, f"with lesions the macro AUROC is {area:.3f}"
    for name, (low, middle, high) in {
        "lesion-free": _learnt(bare, targets, owners),
        "shuffled": _learnt(shown, shuffled, owners),
    }.items():
        assert low < 0.5 < high, f"{name}: macro AUROC {middle:.3f} in [{low:.3f}, {high:.3f}]"
        assert high < lower
