"""AUROC on resampled patients: how far a figure would move had other patients been drawn.

Images of one patient look alike, so whole patients are drawn, with replacement, as many as there are (the cluster
bootstrap; Field & Welsh, J. R. Stat. Soc. B 2007). A resample is then no more than one whole number a patient: how
often that patient was drawn. Scores are sorted once; a resample only weighs them anew. AUROC is

    A = Σₖ P(k)·(2·N(< k) + N(k)) / (2·P·N)

over the distinct scores k of positive images, with P(k) and N(k) the drawn positive and negative images of score k and
N(< k) the negative ones below. The sums over images are sparse matrices of counts by patient times the matrix of
weights, and all of them are whole numbers below 2⁵³, so the result is what drawing the rows themselves would give, to
the last division.

Shapes: N images, F findings, P patients, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from aecnn.evaluation.auroc import Float64s, Floats, labelled

NUM_RESAMPLES = 1000
LEVEL = 0.95
OFTEN = 0.01  # share of the resamples
_CHUNK = 32  # resamples at a time: their weights of some thousand patients stay in the processor's cache
Interval = tuple[float, float]


@dataclass(frozen=True)
class Resampled:
    """AUROC of every finding in every resample."""

    auroc: Float64s  # [R, F], NaN where the resample has no positive or no negative image of the finding

    @property
    def macro(self) -> Float64s:
        """[R] each resample's mean over the findings that it defines; NaN in one that defines none."""
        return macro_means(self.auroc)

    @property
    def num_undefined(self) -> NDArray[np.int64]:
        """[F] resamples in which a finding is undefined."""
        return np.asarray(np.isnan(self.auroc).sum(axis=0), dtype=np.int64)


@dataclass(frozen=True)
class _OfFinding:
    """One finding's images by distinct score of its positive images, counted by patient: K scores, P patients."""

    positive: csr_array  # [K, P] positive images of a score
    between: csr_array  # [K, P] negative images from the score before up to, without, this one
    tied: csr_array | None  # [K, P] negative images of just this score; None where there is none
    num_positive: Float64s  # [P]
    num_negative: Float64s  # [P]


def resample(scores: Floats, targets: Floats, patients: Sequence[str], *, num_resamples: int, seed: int) -> Resampled:
    """Gives AUROC on patients drawn with replacement.

    A finding that lacks a class in a resample is undefined there, NaN, and left out of that resample's macro mean.

    Args:
        scores: [N, F]; a finding whose column is NaN was not predicted and is NaN throughout.
        targets: [N, F] in {0, 1, NaN}.
        patients: [N], whose image each is.
        num_resamples: How many draws.
        seed: The same seed, patients and number give the same draws, whatever the scores: two models are compared on
            the same patients.
    """
    names, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    counted = [
        None
        if np.isnan(scores[:, f]).any()
        else _count(scores[:, f], targets[:, f], patient_of, num_patients=len(names))
        for f in range(scores.shape[1])
    ]
    random = np.random.default_rng(seed)
    areas = np.full((num_resamples, scores.shape[1]), np.nan)
    for start in range(0, num_resamples, _CHUNK):
        weights = draw_weights(len(names), min(_CHUNK, num_resamples - start), random=random)
        for f, finding in enumerate(counted):
            if finding is not None:
                areas[start : start + _CHUNK, f] = _areas(finding, weights)
    return Resampled(areas)


def draw_weights(num_patients: int, num_resamples: int, *, random: np.random.Generator) -> Float64s:
    """Draws patients with replacement, as many as there are; gives how often each is in each resample, [P, R]."""
    weights = np.empty((num_patients, num_resamples))
    for column in range(num_resamples):
        drawn = random.integers(num_patients, size=num_patients)
        weights[:, column] = np.bincount(drawn, minlength=num_patients)
    return weights


def often_undefined(num_undefined: Mapping[str, int], num_resamples: int) -> dict[str, float]:
    """Gives the findings undefined in more than 1 % of the resamples, with that share: so few patients have a class.

    Args:
        num_undefined: Finding → resamples that lack one of its classes.
        num_resamples: Of all.
    """
    return {name: count / num_resamples for name, count in num_undefined.items() if count > OFTEN * num_resamples > 0}


def percentile_interval(values: Floats, *, level: float = LEVEL) -> Interval | None:
    """Gives the percentile interval of a figure over resamples; None unless most of them define it.

    Args:
        values: [R], NaN where a resample does not define the figure; these are left out.
        level: Share of resamples inside, as much cut off below as above.
    """
    defined = values[~np.isnan(values)]
    if 2 * defined.size <= values.size:
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)


def macro_means(areas: Floats) -> Float64s:
    """Gives each row's mean over its defined figures, [R]; NaN where a row has none.

    Args:
        areas: [R, F].
    """
    defined = ~np.isnan(areas)
    sums, counts = np.where(defined, areas, 0.0).sum(axis=1), defined.sum(axis=1)
    means = np.divide(sums, counts, out=np.full(len(areas), np.nan), where=counts > 0)
    return np.asarray(means, dtype=np.float64)


def _count(scores: Floats, targets: Floats, patient_of: NDArray[np.intp], *, num_patients: int) -> _OfFinding | None:
    """Counts one finding's images; None where it lacks a class."""
    known, positive = labelled(scores, targets)
    owner = patient_of[~np.isnan(targets)]
    if positive.all() or not positive.any():
        return None
    distinct, score_of_positive = np.unique(known[positive], return_inverse=True)
    negatives, owner_of_negative = known[~positive], owner[~positive]
    # Negative images above all positive ones are counted nowhere: no positive image stands above them.
    place = np.searchsorted(distinct, negatives, side="right")
    below = place < distinct.size
    tied = (place > 0) & (distinct[np.maximum(place - 1, 0)] == negatives)
    shape = (distinct.size, num_patients)
    return _OfFinding(
        positive=_counts(score_of_positive, owner[positive], shape),
        between=_counts(place[below], owner_of_negative[below], shape),
        tied=_counts(place[tied] - 1, owner_of_negative[tied], shape) if tied.any() else None,
        num_positive=np.bincount(owner[positive], minlength=num_patients).astype(np.float64),
        num_negative=np.bincount(owner_of_negative, minlength=num_patients).astype(np.float64),
    )


def _counts(rows: NDArray[np.intp], columns: NDArray[np.intp], shape: tuple[int, int]) -> csr_array:
    # What falls on one cell adds up. SciPy has no types.
    return csr_array((np.ones(rows.size), (rows, columns)), shape=shape)  # type: ignore[no-untyped-call]


def _areas(finding: _OfFinding, weights: Float64s) -> Float64s:
    """AUROC of one finding in each resample, [R], of weights [P, R]."""
    positive = finding.positive @ weights
    twice_below = 2.0 * np.cumsum(finding.between @ weights, axis=0)
    if finding.tied is not None:
        twice_below += finding.tied @ weights
    twice_pairs = 2.0 * (finding.num_positive @ weights) * (finding.num_negative @ weights)
    twice_won = np.einsum("kr,kr->r", positive, twice_below)
    areas = np.divide(twice_won, twice_pairs, out=np.full(twice_pairs.size, np.nan), where=twice_pairs > 0)
    return np.asarray(areas, dtype=np.float64)
