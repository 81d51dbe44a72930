"""Score histograms: what a hospital says about its model's predictions, and all that pooled AUROC needs.

A histogram counts, for each finding, how many positive and how many negative images fall into each bin of one fixed
grid of logits. Counts of two hospitals add, so the AUROC of the pooled scores follows without a score leaving: pairs
in different bins are ordered exactly, and pairs that share a bin count one half, so the error is at most half the
share of pairs in a common bin (`auroc_error_bound`).

Shapes: F findings, B bins; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.findings import NUM_FINDINGS

NUM_BINS = 1024
LOGIT_LIMIT = 16.0  # sigmoid(±16) is 1.1e-7 from 0 and 1; logits beyond fall into the outer bins
_EDGES = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, NUM_BINS + 1)[1:-1]


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of images by finding, true class and logit bin, int64 [F, 2, B]."""

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Self:
        """Gives the histogram of no image, the zero of `+`."""
        return cls(np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64))

    @classmethod
    def of(cls, logits: Floats, targets: Floats) -> Self:
        """Counts images.

        Args:
            logits: [N, F], finite.
            targets: [N, F] in {0, 1, NaN}; NaN is not counted.
        """
        counts = np.zeros((logits.shape[1], 2, NUM_BINS), dtype=np.int64)
        bins = np.searchsorted(_EDGES, logits, side="right")
        for finding in range(logits.shape[1]):
            for true_class in (0, 1):
                chosen = bins[targets[:, finding] == true_class, finding]
                counts[finding, true_class] = np.bincount(chosen, minlength=NUM_BINS)
        return cls(counts)

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        return ScoreHistogram(self.counts + other.counts)

    @property
    def num_positive(self) -> NDArray[np.int64]:
        """Positive images of each finding, [F]."""
        return np.asarray(self.counts[:, 1].sum(axis=-1), dtype=np.int64)

    @property
    def num_negative(self) -> NDArray[np.int64]:
        """Negative images of each finding, [F]."""
        return np.asarray(self.counts[:, 0].sum(axis=-1), dtype=np.int64)

    def auroc(self) -> Float64s:
        """Gives each finding's pooled AUROC, [F]; NaN where a class is empty."""
        negative, positive = self.counts[:, 0].astype(np.float64), self.counts[:, 1].astype(np.float64)
        below = np.cumsum(negative, axis=-1) - negative
        return self._share_of_pairs((positive * (below + 0.5 * negative)).sum(axis=-1))

    def auroc_error_bound(self) -> Float64s:
        """Gives the largest possible difference from the AUROC of the unbinned scores, [F]."""
        return self._share_of_pairs(0.5 * (self.counts[:, 0] * self.counts[:, 1].astype(np.float64)).sum(axis=-1))

    def _share_of_pairs(self, pairs: Float64s) -> Float64s:
        total = self.num_positive.astype(np.float64) * self.num_negative
        share = np.divide(pairs, total, out=np.full(total.shape, np.nan), where=total > 0)
        return np.asarray(share, dtype=np.float64)


def pooled(histograms: Sequence[ScoreHistogram]) -> ScoreHistogram:
    """Adds histograms; the order does not matter."""
    total = ScoreHistogram.empty()
    for histogram in histograms:
        total = total + histogram
    return total
