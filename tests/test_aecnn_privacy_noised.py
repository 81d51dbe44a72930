"""The exact sampler against the law it draws from, and noised histograms against counting, bounds and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from aecnn.evaluation.auroc import auroc
from aecnn.evaluation.noised import (
    HIGHEST_EDGE,
    LOWEST_EDGE,
    NOISED_BINS,
    auroc_of_noised,
    coarse_counts,
    expected_auroc_error,
    fewest_images,
    noise_std_of,
    noised_counts,
    sensitivity,
)
from aecnn.findings import NUM_FINDINGS
from aecnn.training.privacy.accounting import noise_for
from aecnn.training.privacy.discrete_gaussian import ExactDraws, discrete_gaussian
from aecnn.training.privacy.entropy import SystemEntropy
from entropy_of_tests import SeededEntropy


class RecordedBits:
    """Gives the words of a list, and then zeros."""

    def __init__(self, *words):
        self._words = list(words)

    def bits(self, count):
        """As `Entropy` has it."""
        words, self._words = self._words[:count], self._words[count:]
        return np.array((words + [0] * count)[:count], dtype=np.uint64)


def _pmf(variance, most):
    """The law by its definition: weights exp(−x²/2σ²), over their sum."""
    values = np.arange(-most, most + 1)
    weights = np.exp(-(values.astype(float) ** 2) / (2.0 * float(variance)))
    return values, weights / weights.sum()


def _p_value(draws, values, expected):
    """Chi-square of draws against a law, with tails of fewer than five expected draws taken together."""
    observed = np.array([(draws == value).sum() for value in values])
    rare = expected * draws.size < 5
    observed = np.append(observed[~rare], draws.size - observed[~rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    return chisquare(observed, wanted / wanted.sum() * draws.size).pvalue


@pytest.mark.parametrize("variance", [Fraction(1, 5), Fraction(1), Fraction(7, 2), Fraction(0.9) ** 2 * 14])
def test_the_sampler_follows_the_discrete_gaussian(variance):
    draws = discrete_gaussian(variance, (6000,), entropy=SeededEntropy(3))
    values, expected = _pmf(variance, 60)
    assert _p_value(draws, values, expected) > 1e-3
    assert draws.dtype == np.int64


def test_the_sampler_is_symmetric_and_has_the_variance_of_the_law():
    draws = discrete_gaussian(Fraction(25), (100, 100), entropy=SeededEntropy(4)).ravel()
    assert abs((draws > 0).mean() - (draws < 0).mean()) < 4 * math.sqrt(1.0 / draws.size)
    assert abs(draws.mean()) < 4 * 5.0 / math.sqrt(draws.size)
    values, expected = _pmf(25, 60)
    variance = float((values**2 * expected).sum())
    assert variance == pytest.approx(25.0, abs=1e-9)  # from σ = 1 on the discrete law has the continuous one's
    assert draws.var() == pytest.approx(variance, rel=4 * math.sqrt(2.0 / draws.size))


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2)])
def test_a_toss_falls_with_exactly_the_probability_of_the_exponential(gamma):
    exact = ExactDraws(SeededEntropy(5))
    share = np.mean([exact.bernoulli_exp(gamma) for _ in range(8000)])
    expected = math.exp(-gamma)
    assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / 8000)


def test_the_discrete_laplace_follows_its_law():
    exact = ExactDraws(SeededEntropy(6))
    draws = np.array([exact.laplace(3) for _ in range(6000)])
    values = np.arange(-60, 61)
    weights = np.exp(-np.abs(values) / 3.0)
    assert _p_value(draws, values, weights / weights.sum()) > 1e-3


def test_integers_below_a_limit_are_the_bits_themselves_and_what_is_too_large_is_drawn_again():
    # Three bits at a time from the lowest: 7 and 6 are refused for a limit of 6, 5 is taken, then 2.
    assert [ExactDraws(RecordedBits(0b010_101_110_111)).below(6)] == [5]
    exact = ExactDraws(RecordedBits(0b010_101_110_111))
    assert [exact.below(6), exact.below(6)] == [5, 2]
    assert exact.below(1) == 0
    assert ExactDraws(RecordedBits(1, 1)).below(2**65) == 1 + 2**64  # two words, joined


def test_tosses_of_a_fraction_have_no_rounding():
    third = Fraction(1, 3)
    outcomes = [ExactDraws(RecordedBits(word)).bernoulli(third) for word in range(3)]  # two bits: 0, 1, 2
    assert outcomes == [True, False, False]


def test_noise_as_wide_as_ours_is_as_private_as_the_continuous_gaussian_it_is_charged_as():
    """The worst case, every finding's count changed by one, by the exact law; and the closed form of the Gaussian.

    The privacy loss of 14 draws is linear in their sum, which is a discrete Gaussian itself, 14 times as wide in
    variance and shifted by 14 (Canonne et al., theorem 7 gives its δ).
    """
    for noise in (0.5, 1.0, 3.0):
        variance, shift = 14 * (noise * sensitivity(1)) ** 2, 14
        values, expected = _pmf(variance, 2000)
        for epsilon in (0.5, 1.0, 4.0):
            threshold = epsilon * variance / shift
            above, far = values > threshold - shift / 2, values > threshold + shift / 2
            discrete = expected[above].sum() - math.exp(epsilon) * expected[far].sum()
            assert discrete <= _gaussian_delta(epsilon - 0.01, noise)  # what the accountant adds is more


def _gaussian_delta(epsilon, noise):
    """δ of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    half, far = 0.5 / noise, epsilon * noise

    def phi(x):
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    return phi(half - far) - math.exp(epsilon) * phi(-half - far)


def _scores(seed, num_images, *, prevalence=0.2, shift=1.5):
    random = np.random.default_rng(seed)
    targets = (random.random((num_images, NUM_FINDINGS)) < prevalence).astype(np.float32)
    return random.normal(-3.0, 1.2, size=targets.shape) + shift * targets, targets


def _exact(logits, targets, patients, *, most=1000, seed=0):
    return coarse_counts(logits, targets, patients, images_per_patient=most, entropy=SeededEntropy(seed))


def test_every_labelled_image_is_in_the_cell_of_its_logit():
    logits, targets = _scores(1, 300)
    targets[:40, 2] = np.nan
    logits[0], logits[1] = -100.0, 100.0
    counts = _exact(logits, targets, [str(number) for number in range(300)])
    edges = [-np.inf, *(LOWEST_EDGE + 0.25 * step for step in range(NOISED_BINS - 1)), np.inf]
    assert edges[-2] == HIGHEST_EDGE
    for finding in (0, 2, 13):
        for true_class in (0, 1):
            own = logits[targets[:, finding] == true_class, finding]
            expected = [((own >= low) & (own < high)).sum() for low, high in itertools.pairwise(edges)]
            assert counts[finding, true_class].tolist() == expected


def test_at_most_so_many_images_of_a_patient_count_and_each_as_often_as_another():
    logits = np.tile(np.array([[-5.0], [-3.0], [-1.0], [1.0]]), (1, NUM_FINDINGS))
    targets = np.zeros_like(logits)
    counts = [_exact(logits, targets, ["p"] * 4, most=2, seed=seed)[0, 0] for seed in range(600)]
    assert {int(row.sum()) for row in counts} == {2}
    shares = np.sum(counts, axis=0)
    assert shares[shares > 0].tolist() == pytest.approx([300] * 4, abs=4 * math.sqrt(600 * 0.25))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.booleans())
def test_one_patient_with_a_hundred_images_changes_the_counts_by_no_more_than_the_sensitivity(seed, most, alike):
    logits, targets = _scores(seed, 200)
    # The others have no more images than are counted, so that none of their draws depends on who else is there.
    patients = [f"{number // most}" for number in range(100)] + ["the one"] * 100
    if alike:  # the worst case: all images in one cell of each finding
        logits[100:], targets[100:] = -3.0, 1.0
    with_them = _exact(logits, targets, patients, most=most, seed=seed)
    without = _exact(logits[:100], targets[:100], patients[:100], most=most, seed=seed)
    change = float(np.linalg.norm(with_them - without))
    assert change <= sensitivity(most) * (1 + 1e-12)
    if alike:
        assert change == pytest.approx(math.sqrt(14) * most)


def test_the_noise_is_the_multiplier_times_the_sensitivity_and_other_every_time():
    logits, targets = _scores(2, 50)
    patients = [str(number) for number in range(50)]
    exact = _exact(logits, targets, patients)
    noise = [
        noised_counts(logits, targets, patients, images_per_patient=2, noise_multiplier=1.5, entropy=SystemEntropy())
        - exact
        for _ in range(3)
    ]
    expected = 1.5 * math.sqrt(14) * 2
    for drawn in noise:
        assert drawn.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * drawn.size))
        assert abs(drawn.mean()) < 4 * expected / math.sqrt(drawn.size)
    assert (noise[0] != noise[1]).any()


def test_hospitals_noised_counts_add_to_those_of_the_pool():
    parts = [_scores(seed, 4000) for seed in (3, 4, 5)]
    names = [str(number) for number in range(4000)]
    exact = [_exact(*part, names) for part in parts]
    logits, targets = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    np.testing.assert_array_equal(sum(exact), _exact(logits, targets, [str(i) for i in range(12000)]))
    told = [
        noised_counts(*part, names, images_per_patient=1, noise_multiplier=1.0, entropy=SeededEntropy(seed))
        for seed, part in enumerate(parts)
    ]
    np.testing.assert_allclose(auroc_of_noised(sum(told)), auroc(logits, targets), rtol=0, atol=0.05)


def test_without_noise_only_the_grid_is_lost():
    logits, targets = _scores(6, 5000)
    coarse = auroc_of_noised(_exact(logits, targets, [str(number) for number in range(5000)]))
    np.testing.assert_allclose(coarse, auroc(logits, targets), rtol=0, atol=4e-3)


def test_an_empty_hospital_gives_noise_alone_and_no_auroc():
    nothing = np.zeros((0, NUM_FINDINGS))
    assert not _exact(nothing, nothing, []).any()
    counts = noised_counts(nothing, nothing, [], images_per_patient=1, noise_multiplier=2.0, entropy=SeededEntropy(7))
    assert noise_std_of(counts) == pytest.approx(2.0 * math.sqrt(14), rel=0.1)
    assert np.isnan(auroc_of_noised(counts)).all()


def test_a_class_that_is_not_clearly_above_its_noise_has_no_auroc():
    counts = np.zeros((NUM_FINDINGS, 2, NOISED_BINS), dtype=np.int64)
    counts[:, 0, 10] = 5000
    counts[0, 1, 14] = 500
    counts[1, 1, 14] = 40
    noised = counts + discrete_gaussian(Fraction(9), counts.shape, entropy=SeededEntropy(8))
    areas = auroc_of_noised(noised)
    assert areas[0] > 0.9
    assert np.isnan(areas[1:]).all()
    assert fewest_images(3.0 / math.sqrt(14), 1) == pytest.approx(4 * 3 * math.sqrt(NOISED_BINS))


def test_no_area_is_below_zero_or_above_one():
    counts = np.zeros((NUM_FINDINGS, 2, NOISED_BINS), dtype=np.int64)
    counts[:, 0, 5], counts[:, 1, 20] = 400, 400
    noised = counts + discrete_gaussian(Fraction(100), counts.shape, entropy=SeededEntropy(9))
    areas = auroc_of_noised(noised)
    assert np.nanmax(areas) == 1.0
    assert np.nanmax(auroc_of_noised(noised[:, ::-1])) < 0.5


def test_the_expected_error_is_that_of_simulated_noise():
    for num_positive, num_negative, noise, most in ((300, 5000, 1.0, 1), (1500, 20_000, 3.0, 2), (900, 900, 2.0, 1)):
        random = np.random.default_rng(10)
        logits = np.concatenate([random.normal(-3.0, 1.5, num_negative), random.normal(-1.215, 1.5, num_positive)])
        targets = np.repeat([0.0, 1.0], [num_negative, num_positive])
        wide = [np.repeat(column[:, None], NUM_FINDINGS, axis=1) for column in (logits, targets)]
        exact = _exact(*wide, [str(number) for number in range(logits.size)])
        spread = noise * sensitivity(most)
        errors = [
            auroc_of_noised(exact + np.rint(random.normal(0.0, spread, exact.shape)).astype(np.int64))
            - auroc_of_noised(exact)
            for _ in range(60)
        ]
        found = float(np.sqrt(np.mean(np.square(errors))))
        assert expected_auroc_error(num_positive, num_negative, noise, most) == pytest.approx(found, rel=0.12)


def test_the_expected_error_grows_with_noise_and_is_not_told_where_there_is_no_auroc():
    errors = [expected_auroc_error(500, 5000, noise, 1) for noise in (0.1, 0.5, 1.0, 2.0)]
    assert errors == sorted(errors)
    assert errors[1] == pytest.approx(errors[0] * 5)
    assert math.isnan(expected_auroc_error(20, 5000, 2.0, 1))
    noise = noise_for(epsilon=1.0, delta=1e-5, sample_rate=1.0, steps=1)
    assert noise == pytest.approx(3.76, rel=0.01)  # 3.73 by the closed form, and what the accountant adds
