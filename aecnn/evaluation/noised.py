"""Score histograms that may leave under differential privacy: a coarse grid, few images a patient, exact noise.

A patient's images are counted in one cell each of every finding. With at most K images of a patient counted, adding or
removing one patient changes at most K counts in each of F findings, which is most when they fall into one cell: by
Δ₂ = √F·K in Euclidean length. Each cell gets a draw of the discrete Gaussian with a standard deviation of the noise
multiplier × Δ₂, which costs what one Gaussian mechanism without sampling costs. Noised counts of hospitals add.

Which grid: a cell costs noise whether it counts anything or not, and a grid too coarse for the scores' spread ties
pairs. Measured on scores of a normal distribution with AUROC 0.8, in AUROC lost: with a spread of 1.5 logits 0.001, of
0.7 0.002, of 0.3 0.013, of 4 (an overconfident model) 0.012; the exact histogram's range from −16 to 16 in 32 bins
would lose 0.010, 0.039, 0.109 and 0.001. A model whose scores spread over less than 0.2 logits is not served.

Shapes: F findings, B bins; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.findings import NUM_FINDINGS
from aecnn.training.privacy.discrete_gaussian import discrete_gaussian
from aecnn.training.privacy.entropy import Entropy
from aecnn.training.privacy.sampling import PatientRows, sample_patients

LOWEST_EDGE, HIGHEST_EDGE = -6.0, 1.5  # in logits: probabilities of 0.0025 and 0.82; what is beyond is one cell each
NOISED_BINS = 32
_EDGES = np.linspace(LOWEST_EDGE, HIGHEST_EDGE, NOISED_BINS - 1)  # a quarter of a logit apart
CLEARLY = 4.0  # standard deviations of its noise that a class's total must exceed
_EXPECTED_LOGIT, _EXPECTED_SPREAD, _EXPECTED_SHIFT = -3.0, 1.5, 1.19  # normal scores, in logits and in spreads
_EXPECTED_AUROC = float(ndtr(_EXPECTED_SHIFT / math.sqrt(2.0)))  # 0.80


def sensitivity(images_per_patient: int) -> float:
    """Gives Δ₂: by how much one patient, added or removed, changes the exact counts at most, in Euclidean length."""
    return math.sqrt(NUM_FINDINGS) * images_per_patient


def noised_counts(
    logits: Floats,
    targets: Floats,
    patients: Sequence[str],
    *,
    images_per_patient: int,
    noise_multiplier: float,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Counts images by finding, true class and logit bin, with noise.

    Args:
        logits: [N, F], finite.
        targets: [N, F] in {0, 1, NaN}; NaN is not counted.
        patients: [N], whose image each is.
        images_per_patient: K: counted at most, drawn at random of a patient who has more.
        noise_multiplier: Of the noise, in units of Δ₂.
        entropy: Which images are counted and the noise come from it.

    Returns:
        [F, 2, B], some of them negative.
    """
    counts = coarse_counts(logits, targets, patients, images_per_patient=images_per_patient, entropy=entropy)
    variance = Fraction(noise_multiplier) ** 2 * NUM_FINDINGS * images_per_patient**2
    return counts + discrete_gaussian(variance, counts.shape, entropy=entropy)


def coarse_counts(
    logits: Floats, targets: Floats, patients: Sequence[str], *, images_per_patient: int, entropy: Entropy
) -> NDArray[np.int64]:
    """Counts at most so many images of each patient, without noise: nothing that may leave, [F, 2, B]."""
    counts = np.zeros((NUM_FINDINGS, 2, NOISED_BINS), dtype=np.int64)
    if len(patients) == 0:
        return counts
    chosen = sample_patients(
        PatientRows.of(patients, np.arange(len(patients))),
        sample_rate=1.0,
        images_per_patient=images_per_patient,
        entropy=entropy,
    )
    rows = np.concatenate(chosen)
    bins = np.searchsorted(_EDGES, logits[rows], side="right")
    for finding in range(NUM_FINDINGS):
        for true_class in (0, 1):
            own = bins[targets[rows, finding] == true_class, finding]
            counts[finding, true_class] = np.bincount(own, minlength=NOISED_BINS)
    return counts


def noise_std_of(counts: NDArray[np.int64]) -> float:
    """Tells the standard deviation of a cell's noise from noised counts alone.

    Counts are never negative, noise is as often as not: the root of the mean square of the negative cells is the
    noise's own where cells are empty, and somewhat less where they hold a little. Of 896 cells many are empty.
    """
    negative = counts[counts < 0].astype(np.float64)
    return float(np.sqrt(np.mean(negative**2))) if negative.size else 0.0


def auroc_of_noised(counts: NDArray[np.int64]) -> Float64s:
    """Gives each finding's AUROC from the sum of hospitals' noised counts, [F].

    It is what the exact histogram's is, with pairs in a common bin counted one half, and kept within 0 and 1. NaN where
    a class's total is not above 0 and above `CLEARLY` times the standard deviation of its noise: that is a bin's
    (`noise_std_of`) times √B. A finding without a single positive passes less than once in a
    thousand times (simulated).
    """
    negative, positive = counts[:, 0].astype(np.float64), counts[:, 1].astype(np.float64)
    least = CLEARLY * noise_std_of(counts) * math.sqrt(NOISED_BINS)
    totals = counts.sum(axis=-1).astype(np.float64)
    clear = (totals > least).all(axis=-1)
    below = np.cumsum(negative, axis=-1) - negative
    pairs = (positive * (below + 0.5 * negative)).sum(axis=-1)
    areas = np.divide(pairs, totals.prod(axis=-1), out=np.full(len(counts), np.nan), where=clear)
    return np.asarray(np.clip(areas, 0.0, 1.0), dtype=np.float64)


def fewest_images(noise_multiplier: float, images_per_patient: int) -> float:
    """Gives how many images a class needs for its total to be clearly above the noise of one hospital's counts."""
    return CLEARLY * noise_multiplier * sensitivity(images_per_patient) * math.sqrt(NOISED_BINS)


def expected_auroc_error(
    num_positive: float, num_negative: float, noise_multiplier: float, images_per_patient: int
) -> float:
    """Gives the standard deviation that the noise of one hospital's counts puts on one finding's AUROC.

    By the delta method: the noise of a positive bin counts as the share of negatives below it differs from the AUROC,
    over the positives, and the other way round. The scores are taken as normal with AUROC 0.8. Sums of H hospitals of
    one size err less by √H. Not in it: what images drawn at random do, and the grid's own loss.

    Args:
        num_positive: Images counted that have the finding.
        num_negative: Images counted that have not.
        noise_multiplier: In units of Δ₂.
        images_per_patient: K.

    Returns:
        NaN where a class is too small to be clearly above the noise: `auroc_of_noised` is not defined either.
    """
    if min(num_positive, num_negative) <= fewest_images(noise_multiplier, images_per_patient):
        return float("nan")
    edges = (_EDGES - _EXPECTED_LOGIT) / _EXPECTED_SPREAD
    negative, positive = (np.diff(ndtr(edges - shift), prepend=0.0, append=1.0) for shift in (0.0, _EXPECTED_SHIFT))
    below = np.cumsum(negative) - negative / 2.0
    above = 1.0 - (np.cumsum(positive) - positive / 2.0)
    of_positive = np.sum((below - _EXPECTED_AUROC) ** 2) / num_positive**2
    of_negative = np.sum((above - _EXPECTED_AUROC) ** 2) / num_negative**2
    return float(noise_multiplier * sensitivity(images_per_patient) * np.sqrt(of_positive + of_negative))
