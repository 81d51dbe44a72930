"""AUROC and average precision against scikit-learn and against counting pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from aecnn.evaluation.auroc import auroc, average_precision, macro_mean, roc_curve
from aecnn.findings import NUM_FINDINGS


def _scores(seed, num_images=500, *, decimals=None):
    random = np.random.default_rng(seed)
    targets = (random.random((num_images, NUM_FINDINGS)) < 0.2).astype(np.float32)
    logits = random.normal(size=targets.shape) + 1.2 * targets - 2.0
    return (logits if decimals is None else logits.round(decimals)), targets


def test_auroc_and_average_precision_equal_scikit_learns_with_many_ties():
    for decimals in (None, 1, 0):
        scores, targets = _scores(1, decimals=decimals)
        expected = [roc_auc_score(targets[:, f], scores[:, f]) for f in range(NUM_FINDINGS)]
        np.testing.assert_allclose(auroc(scores, targets), expected, rtol=0, atol=1e-12)
        expected = [average_precision_score(targets[:, f], scores[:, f]) for f in range(NUM_FINDINGS)]
        np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=0, atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    scores = np.array([[float(score)] for score, _ in rows])
    targets = np.array([[float(positive)] for _, positive in rows])
    positives, negatives = scores[targets == 1], scores[targets == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(auroc(scores, targets)[0], expected, rtol=0, atol=1e-12)


def test_images_where_a_finding_is_not_labelled_do_not_count_for_it():
    scores, targets = _scores(2)
    unlabelled = np.random.default_rng(3).random(targets.shape) < 0.3
    masked = np.where(unlabelled, np.nan, targets)
    for finding in range(NUM_FINDINGS):
        known = ~unlabelled[:, finding]
        expected = roc_auc_score(targets[known, finding], scores[known, finding])
        assert auroc(scores, masked)[finding] == pytest.approx(expected, abs=1e-12)


def test_a_finding_of_one_class_is_nan_and_stays_out_of_the_macro_mean():
    scores, targets = _scores(4)
    targets[:, 0], targets[:, 1] = 0.0, 1.0
    areas = auroc(scores, targets)
    assert np.isnan(areas[:2]).all()
    assert np.isnan(average_precision(scores, targets)[:2]).all()
    assert macro_mean(areas) == pytest.approx(areas[2:].mean())
    assert np.isnan(macro_mean(np.full(3, np.nan)))


def test_the_roc_curve_equals_scikit_learns():
    scores, targets = _scores(5, decimals=1)
    fpr, tpr = roc_curve(scores[:, 0], targets[:, 0])
    expected_fpr, expected_tpr, _ = sklearn_roc_curve(targets[:, 0], scores[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr)
    np.testing.assert_allclose(tpr, expected_tpr)
