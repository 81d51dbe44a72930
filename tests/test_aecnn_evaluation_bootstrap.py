"""The patient bootstrap against drawing the rows themselves and scoring them with scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aecnn.data.manifest import read_split
from aecnn.evaluation.bootstrap import draw_weights, percentile_interval, resample
from aecnn.evaluation.delong import patient_sums
from patients_of_tests import scores_of_patients


def _drawn_rows(patients, *, seed, num_resamples):
    """Rows of each resample, patients in the order of the alphabet."""
    rows_of = {}
    for row, patient in enumerate(patients):
        rows_of.setdefault(patient, []).append(row)
    names, random = sorted(rows_of), np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.concatenate([rows_of[names[drawn]] for drawn in random.integers(len(names), size=len(names))])


def _naive(logits, targets, patients, *, seed, num_resamples):
    areas = np.full((num_resamples, logits.shape[1]), np.nan)
    for r, rows in enumerate(_drawn_rows(patients, seed=seed, num_resamples=num_resamples)):
        for f in range(logits.shape[1]):
            known = rows[~np.isnan(targets[rows, f])]
            if 0 < targets[known, f].sum() < known.size:
                areas[r, f] = roc_auc_score(targets[known, f], logits[known, f])
    return areas


@pytest.mark.parametrize("decimals", [None, 0])
def test_every_resample_is_what_drawing_the_rows_gives_also_with_ties_and_unlabelled_images(decimals):
    drawn = scores_of_patients(1, num_patients=30, decimals=decimals)
    logits = drawn.logits[:, :4]
    targets = np.where(np.random.default_rng(2).random(logits.shape) < 0.2, np.nan, drawn.targets[:, :4])
    for seed, count in ((0, 35), (7, 3)):  # 35 are more than are weighed at a time
        naive = _naive(logits, targets, drawn.patients, seed=seed, num_resamples=count)
        found = resample(logits, targets, drawn.patients, num_resamples=count, seed=seed)
        np.testing.assert_allclose(found.auroc, naive, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.macro, np.nanmean(naive, axis=1), rtol=0, atol=1e-12)


def test_more_resamples_begin_with_the_fewer_and_other_seeds_give_others():
    drawn = scores_of_patients(3)
    few, many, other = (
        resample(drawn.logits, drawn.targets, drawn.patients, num_resamples=number, seed=seed).auroc
        for number, seed in ((5, 0), (50, 0), (5, 1))
    )
    np.testing.assert_array_equal(many[:5], few)
    assert (other != few).any(axis=1).all()


def test_a_finding_of_one_patient_is_undefined_where_that_patient_was_not_drawn():
    drawn = scores_of_patients(4, num_patients=40)
    patients = np.array(drawn.patients)
    targets = drawn.targets.copy()
    targets[:, 0] = patients == patients[0]
    targets[:, 1] = 0.0
    found = resample(drawn.logits, targets, drawn.patients, num_resamples=400, seed=0)
    lacking = [patients[0] not in patients[rows] for rows in _drawn_rows(drawn.patients, seed=0, num_resamples=400)]
    np.testing.assert_array_equal(np.isnan(found.auroc[:, 0]), lacking)
    assert found.num_undefined[0] / 400 == pytest.approx((1 - 1 / 40) ** 40, abs=0.08)
    assert found.num_undefined[1] == 400
    assert percentile_interval(found.auroc[:, 1]) is None
    assert not np.isnan(found.macro).any()


def test_a_finding_that_was_not_predicted_is_undefined_and_moves_no_other():
    drawn = scores_of_patients(5)
    logits = drawn.logits.copy()
    logits[:, 2] = np.nan
    whole = resample(drawn.logits, drawn.targets, drawn.patients, num_resamples=20, seed=0).auroc
    part = resample(logits, drawn.targets, drawn.patients, num_resamples=20, seed=0).auroc
    assert np.isnan(part[:, 2]).all()
    np.testing.assert_array_equal(np.delete(part, 2, axis=1), np.delete(whole, 2, axis=1))


def test_no_resample_and_no_finding_give_no_interval_and_no_warning():
    drawn = scores_of_patients(6, num_patients=5)
    none = resample(drawn.logits, drawn.targets, drawn.patients, num_resamples=0, seed=0)
    assert percentile_interval(none.macro) is None
    nothing = resample(drawn.logits, drawn.targets * 0.0, drawn.patients, num_resamples=4, seed=0)
    assert np.isnan(nothing.macro).all()


def test_as_many_patients_are_drawn_as_there_are_each_as_often_as_another():
    weights = draw_weights(50, 2000, random=np.random.default_rng(0))
    assert (weights.sum(axis=0) == 50).all()
    assert np.abs(weights.mean(axis=1) - 1.0).max() < 5 * math.sqrt(1 / 2000)


def test_the_percentile_interval_cuts_as_much_off_below_as_above():
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert percentile_interval(values) == pytest.approx((25.0, 975.0))
    with_gaps = np.concatenate([values, np.full(1000, np.nan)])
    assert percentile_interval(with_gaps) == pytest.approx((25.0, 975.0))
    assert percentile_interval(np.concatenate([with_gaps, np.full(1, np.nan)])) is None


def test_the_spread_over_resamples_is_the_clustered_standard_error():
    drawn = scores_of_patients(8, num_patients=400)
    found = resample(drawn.logits, drawn.targets, drawn.patients, num_resamples=600, seed=0)
    sums = patient_sums(drawn.logits, drawn.targets, drawn.patients)
    np.testing.assert_allclose(found.auroc.std(axis=0), sums.standard_errors(), rtol=0.12)
    assert found.macro.std() == pytest.approx(sums.macro_standard_error(), rel=0.1)


@pytest.mark.slow
def test_the_official_test_list_resamples_as_its_rows_do(real_data):
    manifest = read_split(real_data / "nih_metadata", "test", require_images=False)
    assert manifest.targets.shape == (25_596, 14)
    patients = manifest.table["patient"].tolist()
    logits = np.random.default_rng(0).normal(size=manifest.targets.shape) + manifest.targets
    found = resample(logits, manifest.targets, patients, num_resamples=40, seed=0)
    naive = _naive(logits[:, 11:], manifest.targets[:, 11:], patients, seed=0, num_resamples=2)
    np.testing.assert_allclose(found.auroc[:2, 11:], naive, rtol=0, atol=1e-12)
    low, high = percentile_interval(found.macro)
    assert 0.002 < high - low < 0.02
