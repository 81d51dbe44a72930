"""Figures of the pooled scores of several hospitals, from the sum of their score histograms.

AUROC is the share of pairs of a positive and a negative image in the right order. Pairs whose bins, or ranges of bins,
do not overlap are ordered for certain; the others can go either way, so the true figure lies within `auroc_bounds`.
With *fine* histograms only pairs in one bin are undecided, and count one half.

By image, the standard error is DeLong's (1988, Biometrics 44:837) from placements, which a histogram holds: a
positive's placement is the share of negatives below it, a negative's the share of positives above it.

Shapes: F findings, B bins; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aecnn.evaluation.auroc import Float64s
from aecnn.evaluation.calibration import CalibrationBin, calibration_curve_of_counts
from aecnn.evaluation.floored import first_bins, spread_evenly
from aecnn.evaluation.histogram import BIN_LOGITS, NUM_BINS, Counts, ScoreHistogram
from aecnn.findings import NUM_FINDINGS

MAX_CURVE_POINTS = 64
_BIN_PROBABILITIES: Float64s = expit(BIN_LOGITS)


@dataclass(frozen=True)
class PooledScores:
    """What all hospitals' histograms come to; `+` adds another's.

    An image lies somewhere from its count in `first` to that in `last`: in one and the same bin, where its hospital's
    histogram is fine.
    """

    first: Counts  # images by the first bin they can lie in
    last: Counts  # images by the last bin they can lie in
    placed: Float64s  # where they are taken to lie

    @classmethod
    def empty(cls) -> "PooledScores":
        """Gives the scores of no image, the zero of `+`."""
        none = np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64)
        return cls(none, none, none.astype(np.float64))

    @classmethod
    def of(cls, histogram: ScoreHistogram) -> "PooledScores":
        """Gives one hospital's scores."""
        counts = histogram.counts
        if histogram.is_floored:
            return cls(first_bins(counts), counts, spread_evenly(counts))
        return cls(counts, counts, counts.astype(np.float64))

    def __add__(self, other: "PooledScores") -> "PooledScores":
        return PooledScores(self.first + other.first, self.last + other.last, self.placed + other.placed)

    @property
    def num_positive(self) -> NDArray[np.int64]:
        """Positive images of each finding, [F]."""
        return np.asarray(self.last[:, 1].sum(axis=-1), dtype=np.int64)

    @property
    def num_negative(self) -> NDArray[np.int64]:
        """Negative images of each finding, [F]."""
        return np.asarray(self.last[:, 0].sum(axis=-1), dtype=np.int64)

    @property
    def is_defined(self) -> NDArray[np.bool_]:
        """Which findings have an image of either class, [F]: the others have no AUROC."""
        return np.asarray((self.num_positive > 0) & (self.num_negative > 0))

    def auroc(self) -> Float64s:
        """Gives each finding's pooled AUROC, [F]; NaN where a class is empty."""
        negative, positive = self.placed[:, 0], self.placed[:, 1]
        return self._share_of_pairs((positive * (_below(negative) + 0.5 * negative)).sum(axis=-1))

    def auroc_bounds(self) -> tuple[Float64s, Float64s]:
        """Gives the least and the greatest AUROC that the scores behind the histograms can have, [F] each."""
        surely_right = (self.first[:, 1] * _below(self.last[:, 0])).sum(axis=-1)
        surely_wrong = (self.first[:, 0] * _below(self.last[:, 1])).sum(axis=-1)
        return self._share_of_pairs(surely_right), 1.0 - self._share_of_pairs(surely_wrong)

    def auroc_error_bound(self) -> Float64s:
        """Gives the largest possible difference of `auroc` from the AUROC of the scores themselves, [F]."""
        area, (least, greatest) = self.auroc(), self.auroc_bounds()
        return np.maximum(np.maximum(area - least, greatest - area), 0.0)

    def standard_error_by_image(self, unseen: Float64s | None = None) -> Float64s:
        """Gives DeLong's standard error of each finding's AUROC, as if every image were a patient of its own, [F].

        NaN where a class has fewer than two images.

        Args:
            unseen: What floored histograms hide of the sums of squares (`placements.unseen_squares`), [F, 2].
        """
        deviations = placements(self.placed) - self.auroc()[:, None, None]
        totals = np.stack([self.num_negative, self.num_positive], axis=1).astype(np.float64)
        squares = np.nansum(self.placed * deviations**2, axis=-1) + (0.0 if unseen is None else unseen)
        enough = (totals > 1).all(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = (squares / ((totals - 1.0) * totals)).sum(axis=1)
        return np.asarray(np.sqrt(np.where(enough, variance, np.nan)), dtype=np.float64)

    def average_precision(self) -> Float64s:
        """Gives each finding's area under the precision-recall curve, scores of a bin taken as equal, [F]."""
        areas = np.full(NUM_FINDINGS, np.nan)
        for finding in map(int, np.flatnonzero(self.is_defined)):
            false_positives, true_positives = self._from_the_top(finding)
            precision = true_positives / np.maximum(true_positives + false_positives, np.finfo(np.float64).tiny)
            areas[finding] = (np.diff(true_positives, prepend=0.0) * precision).sum() / true_positives[-1]
        return areas

    def sensitivity_at(self, finding: int, *, specificity: float) -> float:
        """Gives the largest share of positives found at a threshold with this specificity or more.

        Args:
            finding: With an AUROC.
            specificity: In (0, 1).
        """
        false_positives, true_positives = self._from_the_top(finding)
        rates = false_positives / false_positives[-1]
        fit = np.flatnonzero(rates <= 1.0 - specificity + 1e-12)
        return float(true_positives[fit[-1]] / true_positives[-1]) if fit.size else 0.0

    def calibration(self, finding: int) -> tuple[CalibrationBin, ...]:
        """Gives a finding's calibration curve, with the probability in the middle of a bin for all in it."""
        positive = self.placed[finding, 1]
        return calibration_curve_of_counts(_BIN_PROBABILITIES, positive, self.placed[finding].sum(axis=0))

    def roc(self, finding: int) -> list[list[float]]:
        """Gives points (false positive rate, true positive rate) of a finding with an AUROC, from (0, 0) to (1, 1)."""
        false_positives, true_positives = self._from_the_top(finding)
        return _points(false_positives / false_positives[-1], true_positives / true_positives[-1], begin=(0.0, 0.0))

    def precision_recall(self, finding: int) -> list[list[float]]:
        """Gives points (recall, precision) of a finding with an AUROC, in rising order of the recall."""
        false_positives, true_positives = self._from_the_top(finding)
        found = true_positives + false_positives > 0
        precision = true_positives[found] / (true_positives + false_positives)[found]
        return _points(true_positives[found] / true_positives[-1], precision, begin=(0.0, float(precision[0])))

    def _from_the_top(self, finding: int) -> tuple[Float64s, Float64s]:
        """Negatives and positives at or above each bin, from the highest down; the last is all of them."""
        sums = np.cumsum(self.placed[finding, :, ::-1], axis=-1)
        return sums[0], sums[1]

    def _share_of_pairs(self, pairs: NDArray[np.number]) -> Float64s:
        total = self.num_positive.astype(np.float64) * self.num_negative
        share = np.divide(pairs, total, out=np.full(total.shape, np.nan), where=total > 0)
        return np.asarray(share, dtype=np.float64)


def pooled(histograms: Iterable[ScoreHistogram]) -> PooledScores:
    """Adds histograms; the order does not matter."""
    total = PooledScores.empty()
    for histogram in histograms:
        total = total + PooledScores.of(histogram)
    return total


def placements(placed: Float64s) -> Float64s:
    """Gives every bin's placement, [F, 2, B]; NaN where the other class is empty.

    A positive's is the share of negatives below it, a negative's the share of positives above it, with those in the
    same bin counted one half. Their mean over the images of either class is the AUROC.

    Args:
        placed: Images by finding, class and bin, [F, 2, B].
    """
    negative, positive = placed[:, 0], placed[:, 1]
    totals = placed.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_positive = (_below(negative) + 0.5 * negative) / totals[:, 0, None]
        of_negative = 1.0 - (_below(positive) + 0.5 * positive) / totals[:, 1, None]
    return np.stack([of_negative, of_positive], axis=1)


def _below(counts: NDArray[np.number]) -> Float64s:
    """Images in lower bins, [..., B]."""
    return np.asarray(np.cumsum(counts, axis=-1, dtype=np.float64) - counts, dtype=np.float64)


def _points(x: Float64s, y: Float64s, *, begin: tuple[float, float]) -> list[list[float]]:
    """At most `MAX_CURVE_POINTS` points of a curve, where it has moved on by equal lengths."""
    x, y = np.concatenate([[begin[0]], x]), np.concatenate([[begin[1]], y])
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0.0, length[-1], MAX_CURVE_POINTS)
    chosen = np.unique(np.minimum(np.searchsorted(length, wanted, side="left"), length.size - 1))
    return [[round(float(x[index]), 5), round(float(y[index]), 5)] for index in chosen]
