"""Area under the ROC curve and average precision, for all findings at once.

Shapes: N images, F findings. Scores may be logits or probabilities: both measures depend only on their order.
A finding without a positive or without a negative image is undefined and gives NaN, never 0.5 and never 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Float64s = NDArray[np.float64]

SPECIFICITY = 0.9
_ROUNDING = 1e-9  # of (1 − 0.9)·10 images, which is 1


def auroc(scores: Floats, targets: Floats) -> Float64s:
    """Gives each finding's AUROC as the Mann-Whitney statistic; tied scores count one half.

    Args:
        scores: [N, F], finite.
        targets: [N, F] in {0, 1, NaN}; images where a finding is not labelled (NaN) are left out of that finding.

    Returns:
        [F], NaN where a finding lacks positives or negatives.
    """
    return np.array([_auroc_of_one(*labelled(scores[:, f], targets[:, f])) for f in range(scores.shape[1])])


def average_precision(scores: Floats, targets: Floats) -> Float64s:
    """Gives each finding's area under the precision-recall curve, as the step-wise sum Σ (Rₙ − Rₙ₋₁) Pₙ.

    Args:
        scores: [N, F], finite.
        targets: [N, F] in {0, 1, NaN}.

    Returns:
        [F], NaN where a finding lacks positives or negatives.
    """
    return np.array([_average_precision_of_one(*labelled(scores[:, f], targets[:, f])) for f in range(scores.shape[1])])


def macro_mean(values: Floats) -> float:
    """Gives the mean over the findings that are defined; NaN when none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def roc_curve(scores: Floats, targets: Floats) -> tuple[Float64s, Float64s]:
    """Gives the ROC curve of one finding.

    Args:
        scores: [N], finite.
        targets: [N] in {0, 1, NaN}, with both classes.

    Returns:
        False positive rate and true positive rate, [K] each, from (0, 0) to (1, 1), one point a distinct score.
    """
    true_positives, false_positives = _cumulative_counts(*labelled(scores, targets))
    tpr = np.concatenate([[0.0], true_positives / true_positives[-1]])
    fpr = np.concatenate([[0.0], false_positives / false_positives[-1]])
    return fpr, tpr


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold on one finding's scores does that lets few enough negative images pass."""

    specificity: float  # at least
    sensitivity: float  # share of the positive images at or above the threshold
    threshold: float | None  # None where no threshold finds a positive image so


def at_specificity(scores: Floats, targets: Floats, specificity: float = SPECIFICITY) -> OperatingPoint | None:
    """Gives the highest sensitivity of one finding at some specificity or a higher one; None where a class is missing.

    Only thresholds at a score that is there are taken: nothing is read off between two points of the ROC curve.

    Args:
        scores: [N], finite.
        targets: [N] in {0, 1, NaN}.
        specificity: Least share of the negative images below the threshold.
    """
    known, positive = labelled(scores, targets)
    if positive.all() or not positive.any():
        return None
    true_positives, false_positives = _cumulative_counts(known, positive)
    allowed = np.floor((1.0 - specificity) * false_positives[-1] + _ROUNDING)
    steps = int((false_positives <= allowed).sum())  # thresholds from the highest score down
    if steps == 0 or true_positives[steps - 1] == 0:
        return OperatingPoint(specificity, 0.0, None)
    sensitivity = float(true_positives[steps - 1] / true_positives[-1])
    return OperatingPoint(specificity, sensitivity, float(np.unique(known)[-steps]))


def labelled(scores: Floats, targets: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Gives the scores of one finding's labelled images, and which of them have the finding.

    Args:
        scores: [N].
        targets: [N] in {0, 1, NaN}.
    """
    known = ~np.isnan(targets)
    return scores[known], targets[known] == 1


def _auroc_of_one(scores: Floats, positive: NDArray[np.bool_]) -> float:
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2.0  # ranks from 1; ties share their mean
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2.0) / (num_positive * num_negative)


def _average_precision_of_one(scores: Floats, positive: NDArray[np.bool_]) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    true_positives, false_positives = _cumulative_counts(scores, positive)
    precision = true_positives / (true_positives + false_positives)
    recall_step = np.diff(true_positives, prepend=0.0) / true_positives[-1]
    return float((recall_step * precision).sum())


def _cumulative_counts(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Float64s, Float64s]:
    """Counts of positives and of negatives at or above each distinct score, from the highest down."""
    distinct, inverse = np.unique(scores, return_inverse=True)
    positives = np.bincount(inverse, weights=positive, minlength=distinct.size)[::-1]
    negatives = np.bincount(inverse, weights=~positive, minlength=distinct.size)[::-1]
    return np.cumsum(positives), np.cumsum(negatives)
