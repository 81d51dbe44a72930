"""Score histograms: what a hospital says about its model's predictions, and all that pooled figures need.

A histogram counts, for each finding, how many positive and how many negative images fall into each bin of one fixed
grid of logits. Counts of two hospitals add, so figures of the pooled scores follow without the scores leaving
(`aecnn.evaluation.pooled`).

Which grid: a pair of a positive and a negative in one bin cannot be ordered, so bins must be narrow where scores are.
They are even steps of asinh(logit / 4): 1/591 of a logit wide at 0, 1/418 at ±4, 1/143 at ±16, and reach to ±64. With
evenly wide bins a model that is four times too sure of itself fills the outer ones, or one that hardly dares to say
anything falls into a few. Measured (`benchmarks/histograms.py`) at ChestX-ray14's test size: the error bound of every
finding is below 1e-3 for scores whose spread is 0.3 to 10 logits.

Shapes: N images, F findings, B bins; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.findings import NUM_FINDINGS

Counts = NDArray[np.int64]  # [F, 2, B]
Bins = NDArray[np.int64]  # [N, F]

NUM_BINS = 16_384
LOGIT_SCALE = 4.0  # below it bins are about evenly wide, above it in proportion to the logit
LOGIT_LIMIT = 64.0  # logits beyond fall into the outer bins
_STEPS = np.linspace(-np.arcsinh(LOGIT_LIMIT / LOGIT_SCALE), np.arcsinh(LOGIT_LIMIT / LOGIT_SCALE), 2 * NUM_BINS + 1)
_EDGES = LOGIT_SCALE * np.sinh(_STEPS[2:-1:2])  # [B − 1]
BIN_LOGITS: Float64s = LOGIT_SCALE * np.sinh(_STEPS[1::2])  # the middle of each bin, [B]


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of images by finding, true class and logit bin, int64 [F, 2, B].

    Where it is floored, counts stand for ranges of bins (`aecnn.evaluation.floored`).
    """

    counts: Counts
    is_floored: bool = False

    @classmethod
    def of(cls, logits: Floats, targets: Floats) -> "ScoreHistogram":
        """Counts images.

        Args:
            logits: [N, F], finite.
            targets: [N, F] in {0, 1, NaN}; NaN is not counted.
        """
        return cls(counts_of(bins_of(logits), targets))

    @property
    def num_positive(self) -> NDArray[np.int64]:
        """Positive images of each finding, [F]."""
        return np.asarray(self.counts[:, 1].sum(axis=-1), dtype=np.int64)

    @property
    def num_negative(self) -> NDArray[np.int64]:
        """Negative images of each finding, [F]."""
        return np.asarray(self.counts[:, 0].sum(axis=-1), dtype=np.int64)

    @property
    def told(self) -> NDArray[np.bool_]:
        """Which findings have a count at all, [F]: the others were withheld, or nobody is labelled for them."""
        return np.asarray(self.counts.any(axis=(1, 2)))


def bins_of(logits: Floats) -> Bins:
    """Gives the bin of every logit, [N, F]; one on an edge belongs to the higher bin."""
    return np.searchsorted(_EDGES, logits, side="right").astype(np.int64)


def counts_of(bins: Bins, targets: Floats) -> Counts:
    """Counts images by finding, true class and bin, [F, 2, B].

    Args:
        bins: [N, F].
        targets: [N, F] in {0, 1, NaN}; NaN is not counted.
    """
    counts = np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64)
    for finding in range(NUM_FINDINGS):
        for true_class in (0, 1):
            chosen = bins[targets[:, finding] == true_class, finding]
            counts[finding, true_class] = np.bincount(chosen, minlength=NUM_BINS)
    return counts
