"""Calibration, temperature and operating points against scikit-learn, closed forms and brute force."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve as sklearn_calibration_curve
from sklearn.metrics import log_loss
from sklearn.metrics import roc_curve as sklearn_roc_curve

from aecnn.errors import PredictionsError
from aecnn.evaluation.auroc import at_specificity
from aecnn.evaluation.calibration import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    calibration_curve,
    calibration_curve_of_counts,
    expected_calibration_error,
    fit_temperature,
    logits_of,
    probabilities_of,
)


def _drawn(seed, num_images=2000, *, sharpness=1.0):
    """Logits that are right by construction, then made too sharp or too flat."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1.5, 1.3, size=num_images)
    return logits * sharpness, (random.random(num_images) < expit(logits)).astype(float)


def test_the_curve_of_different_scores_is_scikit_learns_with_bins_of_equal_numbers():
    logits, targets = _drawn(0)
    curve = calibration_curve(expit(logits), targets, num_bins=8)
    observed, predicted = sklearn_calibration_curve(targets, expit(logits), n_bins=8, strategy="quantile")
    np.testing.assert_allclose([point.observed for point in curve], observed, atol=1e-12)
    np.testing.assert_allclose([point.mean_predicted for point in curve], predicted, atol=1e-12)
    assert [point.num_images for point in curve] == [250] * 8


def test_equal_scores_share_a_bin_and_images_that_are_not_labelled_are_in_none():
    targets = np.array([1.0, 0.0, 0.0, 0.0, np.nan])
    (point,) = calibration_curve(np.full(5, 0.4), targets)
    assert (point.observed, point.num_images) == (0.25, 4)
    assert expected_calibration_error((point,)) == pytest.approx(0.15)
    assert calibration_curve(np.full(1, 0.4), np.full(1, np.nan)) == ()
    assert math.isnan(expected_calibration_error(()))


def test_counted_images_have_the_curve_of_the_images():
    logits, targets = _drawn(1, num_images=500)
    scores = expit(logits).round(2)
    values = np.unique(scores)
    positives = np.array([targets[scores == value].sum() for value in values])
    counts = np.array([(scores == value).sum() for value in values])
    assert calibration_curve_of_counts(values, positives, counts) == calibration_curve(scores, targets)


def test_images_counted_in_fractions_have_their_error_whole_and_are_shown_as_round_numbers():
    """The error does not know in which unit images are counted."""
    logits, targets = _drawn(5, num_images=120)
    scores = expit(logits).round(2)
    values, counts = np.unique(scores, return_counts=True)
    positives = np.array([targets[scores == value].sum() for value in values])
    curve = calibration_curve_of_counts(values, positives / 7.0, counts / 7.0)
    whole = calibration_curve(scores, targets)
    assert expected_calibration_error(curve) == pytest.approx(expected_calibration_error(whole), rel=1e-12)
    assert sum(point.weight for point in curve) == pytest.approx(120 / 7)
    assert [point.to_json()["num_images"] for point in curve] == [round(point.num_images / 7) for point in whole]


def test_the_error_of_a_true_model_is_that_of_chance_and_of_an_overconfident_one_far_above():
    true, sharp = (
        np.mean(
            [
                expected_calibration_error(calibration_curve(expit(logits), targets))
                for logits, targets in (_drawn(seed, sharpness=sharpness) for seed in range(20))
            ]
        )
        for sharpness in (1.0, 3.0)
    )
    logits, _ = _drawn(0, num_images=100_000)
    bins = np.sort(expit(logits)).reshape(10, -1).mean(axis=1)
    by_chance = np.sqrt(2 * bins * (1 - bins) / (np.pi * 200)).mean()  # mean |normal| in each bin of 200 images
    assert true == pytest.approx(by_chance, rel=0.15)
    assert sharp > 5 * true


def test_the_temperature_is_where_the_likelihood_is_greatest_and_takes_out_what_was_put_in():
    logits, targets = _drawn(2, num_images=4000, sharpness=2.5)
    table, known = np.stack([logits, logits[::-1]], axis=1), np.stack([targets, targets[::-1]], axis=1)
    found = fit_temperature(table, known)
    assert found == pytest.approx(2.5, rel=0.1)
    losses = {factor: log_loss(targets, expit(logits / (found * factor))) for factor in (0.99, 1.0, 1.01)}
    assert min(losses, key=losses.__getitem__) == 1.0


def test_columns_without_predictions_and_images_without_labels_do_not_move_the_temperature():
    logits, targets = _drawn(3, sharpness=0.5)
    table, known = np.stack([logits, np.full(2000, np.nan)], axis=1), np.stack([targets, targets], axis=1)
    known[:50, 0], table[:50, 0] = np.nan, 99.0
    assert fit_temperature(table, known) == pytest.approx(fit_temperature(logits[50:, None], targets[50:, None]))


def test_faultless_and_useless_logits_give_the_outermost_temperatures():
    logits = np.array([[-2.0], [-1.0], [1.0], [3.0]])
    targets = (logits > 0).astype(float)
    assert fit_temperature(logits, targets) == LEAST_TEMPERATURE
    assert fit_temperature(-logits, targets) == GREATEST_TEMPERATURE


@pytest.mark.parametrize(
    ("logits", "targets", "told"),
    [
        (np.zeros((2, 1)), np.full((2, 1), np.nan), "no labelled image"),
        (np.full((2, 1), np.inf), np.ones((2, 1)), "2 "),
    ],
)
def test_a_temperature_cannot_be_fitted_on_nothing_or_on_infinities(logits, targets, told):
    with pytest.raises(PredictionsError, match=told):
        fit_temperature(logits, targets)


def test_a_table_is_of_logits_where_one_score_is_no_probability():
    table = np.array([[0.2, np.nan], [0.9, np.nan]])
    np.testing.assert_array_equal(probabilities_of(table), table)
    np.testing.assert_allclose(probabilities_of(table + 1.0), expit(table + 1.0))
    np.testing.assert_allclose(expit(logits_of(table)), table)
    assert np.isfinite(logits_of(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("decimals", [6, 1])
def test_the_sensitivity_at_a_specificity_is_the_best_point_of_the_roc_curve_that_keeps_it(decimals):
    logits, targets = _drawn(4)
    scores = expit(logits).round(decimals)
    found = at_specificity(scores, targets)
    fpr, tpr, _ = sklearn_roc_curve(targets, scores, drop_intermediate=False)
    assert found.sensitivity == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max())
    called = scores >= found.threshold
    assert called[targets == 1].mean() == pytest.approx(found.sensitivity)
    assert called[targets == 0].mean() <= 0.1 + 1e-12


def test_where_no_threshold_keeps_the_specificity_no_positive_image_is_found():
    nothing = at_specificity(np.full(20, 0.5), np.arange(20) % 2)
    assert (nothing.sensitivity, nothing.threshold) == (0.0, None)
    assert at_specificity(np.arange(5.0), np.zeros(5)) is None
    one_in_ten = at_specificity(np.arange(11.0), np.array([0.0] * 9 + [1.0, 0.0]))
    assert one_in_ten.sensitivity == 1.0
