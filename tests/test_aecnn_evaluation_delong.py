"""Standard errors of AUROC against published figures, the formulas written out, and simulation."""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from aecnn.evaluation.auroc import auroc, macro_mean
from aecnn.evaluation.comparison import compare
from aecnn.evaluation.delong import patient_sums, placements
from patients_of_tests import scores_of_patients

# Albumin, total protein, K-G score and outcome of 43 patients: the data of DeLong, DeLong & Clarke-Pearson (1988) with
# complete rows, as the documentation of SAS PROC LOGISTIC prints them in its example on comparing ROC curves.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def _ovarian():
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    scores = np.stack([table[:, 0], 10.0 - table[:, 2], table[:, 1]], axis=1)  # albumin, K-G, total protein
    return scores, np.repeat(table[:, 3:], 3, axis=1), [str(row) for row in range(len(table))]


def test_areas_and_standard_errors_of_delongs_own_example_are_the_published_ones():
    scores, targets, patients = _ovarian()
    np.testing.assert_allclose(auroc(scores, targets), [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = patient_sums(scores, targets, patients).standard_errors()
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=5e-5)


def test_the_published_comparison_with_the_k_g_score_comes_out():
    scores, targets, patients = _ovarian()
    for test, difference, error, p_value in ((0, 0.0108, 0.0953, 0.9102), (2, -0.0780, 0.1046, 0.4561)):
        wide = [np.repeat(scores[:, [column]], 14, axis=1) for column in (1, test)]
        found = compare(*wide, np.repeat(targets[:, :1], 14, axis=1), patients, num_resamples=0, seed=0)
        mass = found.findings["Mass"]
        assert mass.difference == pytest.approx(difference, abs=5e-5)
        assert mass.standard_error == pytest.approx(error, abs=5e-5)
        assert mass.p_value == pytest.approx(p_value, abs=5e-5)


def _written_out(scores, positive, patients):
    """Obuchowski's variance of one finding, pair by pair and patient by patient."""
    patients = np.array(patients)
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    area, (m, n) = wins.mean(), wins.shape
    names, one, other = np.unique(patients), patients[positive], patients[~positive]
    a = np.array([(wins.mean(axis=1) - area)[one == name].sum() for name in names])
    b = np.array([(wins.mean(axis=0) - area)[other == name].sum() for name in names])
    i10, i01, i = len(set(one)), len(set(other)), len(names)
    s10, s01 = i10 / ((i10 - 1) * m) * (a**2).sum(), i01 / ((i01 - 1) * n) * (b**2).sum()
    s11 = i / (i - 1) * (a * b).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("decimals", [None, 0])
def test_the_clustered_error_is_obuchowskis_formula_written_out(decimals):
    drawn = scores_of_patients(1, num_patients=40, decimals=decimals)
    errors = patient_sums(drawn.logits, drawn.targets, drawn.patients).standard_errors()
    expected = [
        math.sqrt(_written_out(drawn.logits[:, f], drawn.targets[:, f] == 1, drawn.patients)) for f in range(14)
    ]
    np.testing.assert_allclose(errors, expected, rtol=1e-10)


def test_with_one_image_a_patient_it_is_delongs_variance_of_the_placements():
    drawn = scores_of_patients(2, most_images=1, num_patients=150)
    errors = patient_sums(drawn.logits, drawn.targets, drawn.patients).standard_errors()
    for f in range(14):
        of_positives, of_negatives = placements(drawn.logits[:, f], drawn.targets[:, f] == 1)
        variance = of_positives.var(ddof=1) / of_positives.size + of_negatives.var(ddof=1) / of_negatives.size
        assert errors[f] == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_copies_of_a_patients_images_tell_nothing_new():
    drawn = scores_of_patients(3, most_images=1, num_patients=120)
    once = patient_sums(drawn.logits, drawn.targets, drawn.patients).standard_errors()
    logits, targets = np.tile(drawn.logits, (3, 1)), np.tile(drawn.targets, (3, 1))
    np.testing.assert_allclose(patient_sums(logits, targets, drawn.patients * 3).standard_errors(), once, rtol=1e-10)
    by_image = patient_sums(logits, targets, [str(row) for row in range(len(logits))]).standard_errors()
    np.testing.assert_allclose(once / by_image, math.sqrt(3), rtol=0.05)


def test_the_macro_means_error_is_the_jackknifes_over_patients():
    drawn = scores_of_patients(4, num_patients=300)
    names, patients = np.unique(drawn.patients), np.array(drawn.patients)
    without = [macro_mean(auroc(drawn.logits[patients != n], drawn.targets[patients != n])) for n in names]
    jackknife = math.sqrt((len(names) - 1) * np.var(without))
    found = patient_sums(drawn.logits, drawn.targets, drawn.patients).macro_standard_error()
    assert found == pytest.approx(jackknife, rel=0.03)


def test_intervals_by_patient_hold_the_truth_as_often_as_they_say_and_those_by_image_do_not():
    truth = float(ndtr(1.2 / math.sqrt(2 * (1 + 1.5**2))))
    held = {"by patient": 0, "by image": 0}
    for seed in range(40):
        drawn = scores_of_patients(100 + seed, num_patients=100, most_images=12, of_patient=1.5, prevalence=0.4)
        areas = auroc(drawn.logits, drawn.targets)
        for way, owners in (("by patient", drawn.patients), ("by image", range(len(drawn.logits)))):
            errors = patient_sums(drawn.logits, drawn.targets, [str(owner) for owner in owners]).standard_errors()
            held[way] += int((np.abs(areas - truth) < 1.96 * errors).sum())
    assert 0.92 < held["by patient"] / (40 * 14) < 0.98
    assert held["by image"] / (40 * 14) < 0.8


def test_what_has_no_spread_has_no_error_and_makes_no_warning():
    drawn = scores_of_patients(5, num_patients=60)
    targets = drawn.targets.copy()
    targets[:, 0], targets[:, 1] = 0.0, np.nan
    targets[:, 2] = np.array(drawn.patients) == drawn.patients[0]
    sums = patient_sums(drawn.logits, targets, drawn.patients)
    assert np.isnan(sums.standard_errors()[:3]).all()
    assert not np.isnan(sums.standard_errors()[3:]).any()
    assert np.isnan(sums.macro_standard_error())  # the finding of one patient is in the mean, and not certain
    undefined = np.where(np.arange(14) == 2, np.nan, targets)
    assert np.isfinite(patient_sums(drawn.logits, undefined, drawn.patients).macro_standard_error())
    assert np.isnan(patient_sums(drawn.logits, targets * 0.0, drawn.patients).macro_standard_error())
