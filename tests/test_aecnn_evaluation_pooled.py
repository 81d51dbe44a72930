"""Figures of pooled histograms, fine and floored, against those of the pooled scores and against trying everything."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from aecnn.evaluation.auroc import auroc, average_precision
from aecnn.evaluation.calibration import calibration_curve
from aecnn.evaluation.floored import (
    covers_grid,
    findings_told,
    first_bins,
    floored_histogram,
    patients_by_class,
    patients_needed,
    spread_evenly,
)
from aecnn.evaluation.histogram import BIN_LOGITS, LOGIT_LIMIT, NUM_BINS, ScoreHistogram, bins_of
from aecnn.evaluation.pooled import MAX_CURVE_POINTS, PooledScores, pooled
from aecnn.findings import NUM_FINDINGS


def _scores(seed, num_images=400, *, spread=1.5):
    random = np.random.default_rng(seed)
    targets = (random.random((num_images, NUM_FINDINGS)) < 0.2).astype(np.float64)
    logits = spread * (random.normal(size=targets.shape) + 1.2 * targets - 2.0)
    return logits, targets, [str(patient) for patient in random.integers(0, num_images // 2, num_images)]


def _floored(logits, targets, patients, min_patients=5):
    return floored_histogram(bins_of(logits), targets, patients, min_patients=min_patients)


@pytest.fixture(scope="module")
def parts():
    return [_scores(seed) for seed in (6, 7, 8)]


@pytest.fixture(scope="module")
def together(parts):
    """The pooled scores, and the same after binning: what histograms can know."""
    logits, targets = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    return logits, targets, BIN_LOGITS[bins_of(logits)]


def test_fine_histograms_give_the_pooled_scores_figures_within_the_bound_and_exactly_those_of_binned_scores(
    parts, together
):
    scores = pooled(ScoreHistogram.of(logits, targets) for logits, targets, _ in parts)
    logits, targets, binned = together
    error = np.abs(scores.auroc() - auroc(logits, targets))
    assert (error <= scores.auroc_error_bound() + 1e-12).all()
    assert error.max() < 2e-4
    assert scores.auroc_error_bound().max() < 1e-3
    np.testing.assert_allclose(scores.auroc(), [roc_auc_score(t, s) for t, s in zip(targets.T, binned.T, strict=True)])
    expected = [average_precision_score(t, s) for t, s in zip(targets.T, binned.T, strict=True)]
    np.testing.assert_allclose(scores.average_precision(), expected)
    np.testing.assert_allclose(scores.average_precision(), average_precision(logits, targets), atol=2e-3)
    np.testing.assert_array_equal(scores.num_positive, (targets == 1).sum(axis=0))
    np.testing.assert_array_equal(scores.num_negative, (targets == 0).sum(axis=0))


def test_calibration_and_sensitivity_are_those_of_the_pooled_scores(parts, together):
    scores = pooled(ScoreHistogram.of(logits, targets) for logits, targets, _ in parts)
    _, targets, binned = together
    for finding in range(3):
        probabilities = 1.0 / (1.0 + np.exp(-binned[:, finding]))
        expected = calibration_curve(probabilities, targets[:, finding])
        found = scores.calibration(finding)
        assert [point.num_images for point in found] == [point.num_images for point in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.mean_predicted == pytest.approx(other.mean_predicted)
            assert one.observed == pytest.approx(other.observed)
        fpr, tpr, _ = roc_curve(targets[:, finding], binned[:, finding], drop_intermediate=False)
        assert scores.sensitivity_at(finding, specificity=0.9) == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max())


def test_curves_have_few_points_that_lie_on_the_curve_and_its_ends(parts, together):
    scores = pooled(ScoreHistogram.of(logits, targets) for logits, targets, _ in parts)
    _, targets, binned = together
    points = np.array(scores.roc(0))
    assert len(points) <= MAX_CURVE_POINTS
    fpr, tpr, _ = roc_curve(targets[:, 0], binned[:, 0], drop_intermediate=False)
    on_curve = {(round(x, 5), round(y, 5)) for x, y in zip(fpr, tpr, strict=True)}
    assert all((x, y) in on_curve for x, y in points.tolist())
    np.testing.assert_array_equal(points[[0, -1]], [[0, 0], [1, 1]])
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(scores.auroc()[0], abs=5e-3)
    recalls = np.array(scores.precision_recall(0))[:, 0]
    assert len(recalls) <= MAX_CURVE_POINTS
    assert (np.diff(recalls) >= 0).all()
    assert recalls[-1] == 1.0


def test_adding_is_commutative_and_associative_and_has_a_zero():
    a = PooledScores.of(ScoreHistogram.of(*_scores(9, 60)[:2]))
    b = PooledScores.of(_floored(*_scores(10, 60)))
    c = PooledScores.of(ScoreHistogram.of(*_scores(11, 60)[:2]))
    for one, other in ((a + b, b + a), ((a + b) + c, a + (b + c)), (a + PooledScores.empty(), a)):
        np.testing.assert_array_equal(one.first, other.first)
        np.testing.assert_array_equal(one.last, other.last)
        np.testing.assert_allclose(one.placed, other.placed, atol=1e-9)


def test_a_finding_without_positives_has_no_figures_and_leaves_the_others_alone():
    logits, targets, _ = _scores(12, 60)
    targets[:, 0], targets[:20, 1] = 0.0, np.nan
    scores = PooledScores.of(ScoreHistogram.of(logits, targets))
    for figures in (scores.auroc(), scores.average_precision(), scores.standard_error_by_image()):
        np.testing.assert_array_equal(np.isnan(figures), [True] + [False] * (NUM_FINDINGS - 1))
    assert scores.num_positive[1] + scores.num_negative[1] == 40
    assert not scores.is_defined[0]
    assert not np.isnan(PooledScores.empty().num_positive).any()


def test_logits_beyond_the_grid_are_counted_in_the_outer_bins_and_bins_rise_with_the_logit():
    logits = np.full((2, NUM_FINDINGS), 10 * LOGIT_LIMIT)
    logits[1] *= -1
    assert set(bins_of(logits).ravel()) == {0, NUM_BINS - 1}
    np.testing.assert_array_equal(bins_of(BIN_LOGITS), np.arange(NUM_BINS))


def test_delongs_standard_error_by_image_is_the_textbooks(parts, together):
    """By the definition: the variances of the two kinds of placements over their numbers."""
    scores = pooled(ScoreHistogram.of(logits, targets) for logits, targets, _ in parts)
    _, targets, binned = together
    for finding in range(2):
        positive, negative = (binned[targets[:, finding] == kind, finding] for kind in (1, 0))
        order = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        variance = sum(order.mean(axis=axis).var(ddof=1) / order.shape[1 - axis] for axis in (0, 1))
        assert scores.standard_error_by_image()[finding] == pytest.approx(np.sqrt(variance))


# Floors of patients


def test_every_range_has_images_of_as_many_patients_as_the_floor():
    logits, targets, patients = _scores(13, 300)
    counts, bins, whose = _floored(logits, targets, patients, 7).counts, bins_of(logits), np.array(patients)
    assert covers_grid(counts)
    for finding, true_class in product(range(3), (0, 1)):
        rows = targets[:, finding] == true_class
        ends = np.flatnonzero(counts[finding, true_class])
        starts = np.concatenate([[0], ends[:-1] + 1])
        for start, end in zip(starts, ends, strict=True):
            inside = rows & (bins[:, finding] >= start) & (bins[:, finding] <= end)
            assert inside.sum() == counts[finding, true_class, end]
            assert len(set(whose[inside])) >= 7
        assert len(ends) > 1
        assert ends[-1] == NUM_BINS - 1


def test_a_patient_with_many_images_counts_once():
    bins = np.tile(np.arange(6)[:, None], NUM_FINDINGS)
    counts = floored_histogram(bins, np.zeros((6, NUM_FINDINGS)), ["a", "a", "a", "a", "b", "c"], min_patients=2).counts
    assert np.flatnonzero(counts[0, 0]).tolist() == [NUM_BINS - 1]  # a and b; the rest, c alone, joins them
    assert counts[0, 0, -1] == 6
    counts = floored_histogram(bins, np.zeros((6, NUM_FINDINGS)), ["a", "b", "b", "b", "c", "a"], min_patients=2).counts
    assert np.flatnonzero(counts[0, 0]).tolist() == [1, NUM_BINS - 1]
    assert counts[0, 0, [1, NUM_BINS - 1]].tolist() == [2, 4]
    np.testing.assert_array_equal(np.flatnonzero(first_bins(counts)[0, 0]), [0, 2])
    np.testing.assert_allclose(spread_evenly(counts).sum(axis=-1), counts.sum(axis=-1))


def test_outer_ranges_are_taken_to_be_as_wide_as_their_neighbours_and_nothing_leaves_its_range():
    """Ranges to bins 100, 110 and 115, then to the end: the first lies from 91, the last to 120."""
    counts = np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64)
    counts[0, 0, [100, 110, 115, NUM_BINS - 1]] = 20, 10, 10, 5
    placed = spread_evenly(counts)[0, 0]
    np.testing.assert_allclose(placed[91:101], 2.0)
    np.testing.assert_allclose(placed[101:111], 1.0)
    np.testing.assert_allclose(placed[111:116], 2.0)
    np.testing.assert_allclose(placed[116:121], 1.0)
    assert placed[:91].sum() == placed[121:].sum() == 0
    counts[0, 0] = 0
    counts[0, 0, [100, NUM_BINS - 1]] = 20, 10
    assert np.flatnonzero(spread_evenly(counts)[0, 0]).tolist() == [100, 101]


def test_floored_counts_need_two_ranges_a_class_so_twice_the_patients():
    assert patients_needed(10, is_floored=True) == 20
    assert patients_needed(10, is_floored=False) == 10
    assert patients_needed(1, is_floored=True) == 1  # no floor


def test_a_finding_is_told_where_both_its_classes_have_patients_enough():
    targets = np.zeros((8, NUM_FINDINGS))
    targets[:3, 0] = 1  # of one patient
    targets[:4, 1] = 1  # of two
    targets[0:5, 2], targets[5:, 2] = np.nan, [1, 1, 0]
    patients = ["a", "a", "a", "b", "c", "d", "e", "f"]
    assert patients_by_class(targets, patients)[:3].tolist() == [[5, 1], [4, 2], [1, 2]]
    assert findings_told(targets, patients, min_patients=2)[:4].tolist() == [False, True, False, False]
    assert findings_told(targets, patients, min_patients=1).all()  # no floor


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=7),
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=0, max_size=3),
)
def test_the_bounds_are_the_least_and_greatest_auroc_of_all_scores_that_the_histograms_allow(floored, fine):
    """Every image is put into every bin of its range, for a grid of which seven bins are used."""
    used = (NUM_BINS - 7) + np.arange(7)  # the last range ends with the grid

    def arrays(rows):
        bins = np.tile(used[[place for place, _ in rows]][:, None], NUM_FINDINGS).reshape(-1, NUM_FINDINGS)
        targets = np.tile(np.array([float(is_positive) for _, is_positive in rows])[:, None], NUM_FINDINGS)
        return bins, targets.reshape(-1, NUM_FINDINGS), [str(index) for index in range(len(rows))]

    histogram = floored_histogram(*arrays(floored), min_patients=2)
    bins, targets, _ = arrays(fine)
    scores = pooled([histogram, ScoreHistogram.of(BIN_LOGITS[bins], targets)])
    if not scores.is_defined[0]:
        return
    least, greatest = (float(bounds[0]) for bounds in scores.auroc_bounds())
    images = [(true_class, range(start, end + 1)) for true_class, start, end in _images_of(histogram.counts[0])]
    images += [(int(is_positive), (used[place],)) for place, is_positive in fine]
    areas = [_area([(kind, place) for (kind, _), place in zip(images, places, strict=True)]) for places in _all(images)]
    assert least <= min(areas) + 1e-12
    assert greatest >= max(areas) - 1e-12
    true = _area([(int(kind), used[place]) for place, kind in floored + fine])
    assert abs(scores.auroc()[0] - true) <= scores.auroc_error_bound()[0] + 1e-12


def _images_of(counts):
    for true_class in (0, 1):
        ends = np.flatnonzero(counts[true_class])
        for start, end in zip([0, *(ends[:-1] + 1)][: ends.size], ends, strict=True):
            for _ in range(counts[true_class, end]):
                yield true_class, int(start), int(end)


def _corners(bins):
    """A pair is in order or not by the ends of ranges: what lies between adds nothing."""
    return sorted({bins[0], bins[-1]})


def _all(images):
    return product(*(_corners(bins) for _, bins in images))


def _area(images):
    pairs = [(p > n) + 0.5 * (p == n) for kp, p in images if kp == 1 for kn, n in images if kn == 0]
    return float(np.mean(pairs))


def test_floored_figures_lie_near_those_of_the_scores_and_within_their_wider_bound(parts, together):
    scores = pooled(_floored(*part) for part in parts)
    mixed = pooled([_floored(*parts[0]), *(ScoreHistogram.of(*part[:2]) for part in parts[1:])])
    logits, targets, _ = together
    expected = auroc(logits, targets)
    for found in (scores, mixed):
        error = np.abs(found.auroc() - expected)
        assert (error <= found.auroc_error_bound()).all()
        assert error.max() < 0.01
        np.testing.assert_allclose(found.average_precision(), average_precision(logits, targets), atol=0.06)
    fine = pooled(ScoreHistogram.of(*part[:2]) for part in parts)
    assert (scores.auroc_error_bound() > mixed.auroc_error_bound()).all()
    assert (mixed.auroc_error_bound() > fine.auroc_error_bound()).all()


def test_counts_whose_ranges_leave_the_end_of_the_grid_out_are_known():
    counts = _floored(*_scores(14, 60)).counts.copy()
    counts[3, 1, -1] = 0
    assert not covers_grid(counts)
    assert covers_grid(np.zeros_like(counts))
