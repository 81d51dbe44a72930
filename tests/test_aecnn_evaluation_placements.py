"""Intervals by patient from sums that hospitals give, against the scores themselves, and against resampled patients."""

import numpy as np
import pytest

from aecnn.contract import PlacementReport
from aecnn.evaluation.auroc import auroc
from aecnn.evaluation.delong import patient_sums
from aecnn.evaluation.floored import floored_histogram
from aecnn.evaluation.histogram import BIN_LOGITS, NUM_BINS, ScoreHistogram, bins_of
from aecnn.evaluation.placements import PlacementSums, added, covers, interval, placement_sums, unseen_squares
from aecnn.evaluation.pooled import PooledScores, pooled
from aecnn.findings import NUM_FINDINGS


def _hospital(seed, num_patients=60):
    """Patients with one to six images that are alike: what an interval by image does not know."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, num_patients)
    whose = np.repeat(np.arange(num_patients), sizes)
    targets = (random.random((num_patients, NUM_FINDINGS)) < 0.3)[whose] ^ (random.random((whose.size, 14)) < 0.1)
    logits = 0.8 * random.normal(size=(num_patients, NUM_FINDINGS))[whose] + 0.5 * random.normal(size=targets.shape)
    return logits + targets - 1.5, targets.astype(np.float64), [f"{seed}-{patient}" for patient in whose]


@pytest.fixture(scope="module")
def hospitals():
    return [_hospital(seed) for seed in (1, 2, 3)]


def _told(hospital, *, floor=None):
    logits, targets, patients = hospital
    if floor is None:
        return ScoreHistogram.of(logits, targets)
    return floored_histogram(bins_of(logits), targets, patients, min_patients=floor)


def _placed(hospital, own, scores):
    logits, targets, patients = hospital
    return placement_sums(bins_of(logits), targets, patients, own=own, pooled_images=scores.placed)


def _together(hospitals):
    logits, targets = (np.concatenate([hospital[index] for hospital in hospitals]) for index in (0, 1))
    return logits, targets, [patient for hospital in hospitals for patient in hospital[2]]


def test_the_hospitals_sums_give_the_standard_errors_of_the_pooled_scores(hospitals):
    histograms = [_told(hospital) for hospital in hospitals]
    scores = pooled(histograms)
    total = added(_placed(*pair, scores) for pair in zip(hospitals, histograms, strict=True))
    logits, targets, patients = _together(hospitals)
    expected = patient_sums(BIN_LOGITS[bins_of(logits)], targets, patients)
    np.testing.assert_allclose(total.standard_errors(scores), expected.standard_errors(), rtol=1e-9)
    assert total.macro_standard_error() == pytest.approx(expected.macro_standard_error(), rel=1e-9)
    assert (total.standard_errors(scores) > 1.1 * scores.standard_error_by_image()).all()


def test_the_standard_errors_are_what_drawing_other_patients_gives(hospitals):
    """A bootstrap over patients, 400 times: its own error is some 4 %."""
    histograms = [_told(hospital) for hospital in hospitals]
    scores = pooled(histograms)
    total = added(_placed(*pair, scores) for pair in zip(hospitals, histograms, strict=True))
    logits, targets, patients = _together(hospitals)
    names, whose = np.unique(patients, return_inverse=True)
    rows_of = [np.flatnonzero(whose == index) for index in range(len(names))]
    random = np.random.default_rng(5)
    drawn = [
        np.concatenate([rows_of[index] for index in random.integers(0, len(names), len(names))]) for _ in range(400)
    ]
    areas = np.array([auroc(logits[rows, :4], targets[rows, :4]) for rows in drawn])
    np.testing.assert_allclose(total.standard_errors(scores)[:4], areas.std(axis=0, ddof=1), rtol=0.15)


def test_floored_hospitals_give_about_the_same_standard_errors(hospitals):
    histograms = [_told(hospitals[0], floor=5), *(_told(hospital) for hospital in hospitals[1:])]
    scores = pooled(histograms)
    sums = [_placed(*pair, scores) for pair in zip(hospitals, histograms, strict=True)]
    logits, targets, patients = _together(hospitals)
    expected = patient_sums(logits, targets, patients)
    np.testing.assert_allclose(added(sums).standard_errors(scores), expected.standard_errors(), rtol=0.1)
    assert added(sums).macro_standard_error() == pytest.approx(expected.macro_standard_error(), rel=0.1)


def test_the_error_of_coarsely_floored_hospitals_is_about_that_of_the_scores_and_not_smaller(hospitals):
    """Floored at 15 of 60 patients a class has two or three ranges, within which scores differ much."""
    histograms = [_told(hospital, floor=15) for hospital in hospitals]
    scores = pooled(histograms)
    found = added(_placed(*pair, scores) for pair in zip(hospitals, histograms, strict=True))
    expected = patient_sums(*_together(hospitals))
    assert 0.95 < (found.standard_errors(scores) / expected.standard_errors()).mean() < 1.25
    assert 0.95 < found.macro_standard_error() / expected.macro_standard_error() < 1.25
    fine = [_told(hospital) for hospital in hospitals]
    assert not unseen_squares(fine, scores.placed).any()
    by_image = scores.standard_error_by_image(unseen_squares(histograms, scores.placed))
    assert 0.9 < (by_image / pooled(fine).standard_error_by_image()).mean() < 1.1


def test_a_floored_hospitals_sums_tell_nothing_of_where_in_a_range_its_scores_lie(hospitals):
    """The pooled histogram is the centre's to choose: with it, sums could count what lies to the left of any bin."""
    logits, targets, patients = hospitals[0]
    own = _told(hospitals[0], floor=5)
    bins, counts, moved = bins_of(logits), own.counts, bins_of(logits).copy()
    random = np.random.default_rng(1)
    for finding in range(NUM_FINDINGS):
        for true_class in (0, 1):
            ends = np.flatnonzero(counts[finding, true_class])
            starts = np.concatenate([[0], ends[:-1] + 1])
            rows = np.flatnonzero(targets[:, finding] == true_class)
            inside = np.searchsorted(ends, bins[rows, finding])
            moved[rows, finding] = random.integers(starts[inside], ends[inside] + 1)
    made_up = PooledScores.of(own).placed
    made_up[:, :, 8000] += 1e6  # a step
    one, other = (placement_sums(places, targets, patients, own=own, pooled_images=made_up) for places in (bins, moved))
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-9, atol=1e-9)
    assert one.macro_square == pytest.approx(other.macro_square)


def test_a_pooled_histogram_without_the_hospitals_own_images_is_seen(hospitals):
    for floor in (None, 5):
        own = _told(hospitals[0], floor=floor)
        images = pooled([own, _told(hospitals[1])]).placed
        assert covers(images, own)
        assert covers(PooledScores.of(own).placed, own)
        for change in (-1.0, np.nan):
            lacking = images.copy()
            lacking[2, 0, np.argmax(PooledScores.of(own).placed[2, 0])] += change * 1000
            assert not covers(lacking, own)


def test_a_score_that_comes_out_across_an_edge_the_second_time_is_still_covered(hospitals):
    """Exhaustively for few bins: images are matched to pooled ones in their bin or one beside it, or they cannot be."""
    logits, targets, patients = hospitals[0]
    random = np.random.default_rng(4)
    again = logits + random.normal(size=logits.shape) * 2e-4
    assert (bins_of(again) != bins_of(logits)).sum() > 20
    for floor in (None, 5):
        told, others = _told(hospitals[0], floor=floor), _told(hospitals[1])
        repeated = _told((again, targets, patients), floor=floor)
        assert (repeated.counts != told.counts).any()
        if floor is None:
            assert covers(pooled([told, others]).placed, repeated)
    for _ in range(60):
        own, images = random.integers(0, 3, 5), random.integers(0, 4, 5)
        counts, placed = (np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64) for _ in range(2))
        counts[3, 1, 100:105], placed[3, 1, 100:105] = own, images
        assert covers(placed.astype(np.float64), ScoreHistogram(counts)) == _can_be_matched(own, images)


def _can_be_matched(own, images):
    """From the left, each image takes the leftmost place that is free in its bin or beside it."""
    free = images.tolist()
    for place, number in enumerate(own.tolist()):
        for _ in range(number):
            found = [index for index in (place - 1, place, place + 1) if 0 <= index < len(free) and free[index]]
            if not found:
                return False
            free[found[0]] -= 1
    return True


def test_a_withheld_finding_has_no_sums_and_the_macro_mean_leaves_undefined_ones_out(hospitals):
    logits, targets, patients = (part for part in hospitals[0])
    told = targets.copy()
    told[:, 0] = np.nan  # withheld
    told[:, 1] = 0.0  # without a positive
    own = ScoreHistogram.of(logits, told)
    scores = PooledScores.of(own)
    sums = placement_sums(bins_of(logits), told, patients, own=own, pooled_images=scores.placed)
    assert not sums.squares[:2].any()
    assert sums.patients[0].tolist() == [0, 0, 0]
    assert sums.patients[1].tolist() == [0, 60, 60]
    expected = patient_sums(BIN_LOGITS[bins_of(logits)][:, 2:], targets[:, 2:], patients)
    assert sums.macro_standard_error() == pytest.approx(expected.macro_standard_error(), rel=1e-9)
    assert np.isnan(sums.standard_errors(scores)[:2]).all()
    np.testing.assert_allclose(sums.standard_errors(scores)[2:], expected.standard_errors(), rtol=1e-9)


def test_three_patients_have_a_wide_interval_and_one_has_none():
    logits, targets, _ = _hospital(9, num_patients=3)
    for patients, is_known in (([str(row % 3) for row in range(len(logits))], True), (["a"] * len(logits), False)):
        own = ScoreHistogram.of(logits, targets)
        scores = PooledScores.of(own)
        sums = placement_sums(bins_of(logits), targets, patients, own=own, pooled_images=scores.placed)
        assert np.isfinite(sums.macro_standard_error()) == is_known
        assert (interval(0.7, sums.macro_standard_error()) is not None) == is_known


def test_an_interval_is_kept_within_0_and_1_and_is_none_where_nothing_is_known_of_it():
    assert interval(0.7, 0.1) == pytest.approx((0.7 - 0.196, 0.7 + 0.196), abs=1e-3)
    assert interval(0.95, 0.1)[1] == 1.0
    assert interval(float("nan"), 0.1) is None
    assert interval(0.7, float("nan")) is None
    assert interval(1.0, 0.0) is None


def test_sums_survive_the_wire_and_those_that_no_patients_give_do_not(hospitals):
    own = _told(hospitals[0])
    sums = _placed(hospitals[0], own, PooledScores.of(own))
    report = PlacementReport.from_wire(sums.to_report().to_wire())
    assert PlacementSums.of_report(report).macro_square == sums.macro_square
    np.testing.assert_array_equal(PlacementSums.of_report(report).squares, sums.squares)
    np.testing.assert_array_equal(PlacementSums.of_report(report).patients, sums.patients)
    wire = report.to_wire()
    for key, value in (
        ("positive-squares", [-1.0] * 14),
        ("positive-squares", [float("inf")] * 14),
        ("products", [1e9] * 14),
        ("patients", [0] * 14),
        ("patients", [10**6] * 14),
        ("negative-patients", [1] * 13),
        ("macro-square", -1.0),
    ):
        with pytest.raises(Exception, match=key.replace("-", ".") + "|sum|patients by class"):
            PlacementReport.from_wire(wire | {key: value})


def test_sums_leave_with_two_digits_which_moves_an_interval_by_a_fortieth_at_most(hospitals):
    histograms = [_told(hospital) for hospital in hospitals]
    scores = pooled(histograms)
    exact = [_placed(*pair, scores) for pair in zip(hospitals, histograms, strict=True)]
    told = [sums.told(min_patients=10) for sums in exact]
    for sums, own in zip(told, exact, strict=True):
        found = [*sums.squares[:, :2].ravel(), sums.macro_square]
        wanted = [float(f"{value:.1e}") for value in (*own.squares[:, :2].ravel(), own.macro_square)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert sums.told(min_patients=10).to_report() == sums.to_report()
        np.testing.assert_array_equal(sums.patients, own.patients)  # far more than ten have images of both classes
    np.testing.assert_allclose(added(told).standard_errors(scores), added(exact).standard_errors(scores), rtol=0.025)
    assert added(told).macro_standard_error() == pytest.approx(added(exact).macro_standard_error(), rel=0.025)


def test_fewer_patients_than_the_floor_with_images_of_either_class_are_told_as_two_each():
    targets = np.zeros((24, NUM_FINDINGS))
    targets[:12] = 1.0
    patients = [*map(str, range(12)), *map(str, range(11, 23))]  # patient 11 has one image of either class
    logits = np.linspace(1.0, -1.0, 24)[:, None] + np.random.default_rng(1).normal(size=targets.shape)
    own = ScoreHistogram.of(logits, targets)
    exact = placement_sums(bins_of(logits), targets, patients, own=own, pooled_images=2.0 * PooledScores.of(own).placed)
    assert (exact.patients == [12, 12, 23]).all()
    assert exact.squares[:, 2].all()
    told = exact.told(min_patients=2)
    assert not told.squares[:, 2].any()
    assert (told.patients == [12, 12, 23]).all()  # 24 would be more than there are: it is cut at all the patients
    assert told.to_report() == told.told(min_patients=2).to_report()
    assert (exact.told(min_patients=1).squares[:, 2] != 0).all()
