"""Whether a probability means what it says: calibration curve, expected calibration error, temperature scaling.

A finding's calibration curve sets the mean predicted probability of a bin of images beside the share of them that have
the finding. Bins hold equal numbers of images (the adaptive calibration error of Nixon et al., CVPR workshops 2019),
for findings are rare: of ten bins of equal width nearly all images would lie in the first. Equal scores share a bin.
The expected calibration error (ECE) is the mean of |observed − mean predicted| over the images. It is never negative,
so it is above 0 for a perfect model too, by about √(2·p·(1 − p)·bins / (π·N)) at prevalence p.

Temperature scaling (Guo et al., ICML 2017, §4.2) divides all logits by one number fitted on validation images. It moves
no AUROC.

Shapes: N images, F findings, K distinct scores.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from aecnn.errors import PredictionsError
from aecnn.evaluation.auroc import Float64s, Floats, labelled

NUM_CALIBRATION_BINS = 10
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 100.0
_SMALLEST_PROBABILITY = 1e-7  # what a table of seven digits tells from 0 and from 1


@dataclass(frozen=True)
class CalibrationBin:
    """Images of about one predicted probability."""

    mean_predicted: float
    observed: float  # share of them that have the finding
    weight: float  # number of images, in fractions where the count of several scores was spread over them

    @property
    def num_images(self) -> int:
        """The number as it is shown."""
        return round(self.weight)

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {"mean_predicted": self.mean_predicted, "observed": self.observed, "num_images": self.num_images}


def calibration_curve(
    probabilities: Floats, targets: Floats, *, num_bins: int = NUM_CALIBRATION_BINS
) -> tuple[CalibrationBin, ...]:
    """Gives the calibration curve of one finding, bins in rising order; empty without a labelled image.

    Args:
        probabilities: [N] in [0, 1].
        targets: [N] in {0, 1, NaN}; NaN is not counted.
        num_bins: Of about equal numbers of images; fewer come back where many scores are equal.
    """
    scores, positive = labelled(probabilities, targets)
    distinct, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    positives = np.bincount(inverse, weights=positive, minlength=distinct.size)
    return calibration_curve_of_counts(distinct, positives, counts, num_bins=num_bins)


def calibration_curve_of_counts(
    probabilities: Floats,
    num_positive: NDArray[np.number],
    num_images: NDArray[np.number],
    *,
    num_bins: int = NUM_CALIBRATION_BINS,
) -> tuple[CalibrationBin, ...]:
    """Does the same for images that are counted by score already.

    Args:
        probabilities: [K] in rising order.
        num_positive: [K] images of each that have the finding.
        num_images: [K] images of each, which may be in fractions.
        num_bins: As above.
    """
    counts = np.asarray(num_images, dtype=np.float64)
    total = counts.sum()
    if total == 0:
        return ()
    middle = np.cumsum(counts) - counts / 2.0  # the mean rank of equal scores decides on their bin
    bins = np.minimum((middle * num_bins / total).astype(np.intp), num_bins - 1)
    sums = [np.bincount(bins, weights=part, minlength=num_bins) for part in (counts * probabilities, num_positive)]
    sizes = np.bincount(bins, weights=counts, minlength=num_bins)
    return tuple(
        CalibrationBin(float(predicted / size), float(positive / size), float(size))
        for predicted, positive, size in zip(*sums, sizes, strict=True)
        if size > 0
    )


def expected_calibration_error(curve: tuple[CalibrationBin, ...]) -> float:
    """Gives the mean over images of |observed − mean predicted| of their bins; NaN for an empty curve."""
    total = sum(point.weight for point in curve)
    if total == 0:
        return float("nan")
    return sum(abs(point.observed - point.mean_predicted) * point.weight for point in curve) / total


def fit_temperature(logits: Floats, targets: Floats) -> float:
    """Gives the temperature that makes sigmoid(logits / T) most likely; above 1 where a model is too sure of itself.

    The binary cross-entropy is convex in 1/T, so its one minimum is where the derivative Σ z·(sigmoid(z/T) − y) is 0.
    Where there is none between `LEAST_TEMPERATURE` and `GREATEST_TEMPERATURE` (logits without error, or worse than
    none), the nearer of the two is given.

    Args:
        logits: [N, F] of validation images, not of those that the model is then judged on; a finding whose column is
            NaN was not predicted and is left out.
        targets: [N, F] in {0, 1, NaN}; NaN is left out.

    Raises:
        PredictionsError: A labelled image has an infinite or missing logit, or nothing is labelled.
    """
    predicted = ~np.isnan(logits).all(axis=0)
    known = ~np.isnan(targets) & predicted
    z, y = logits[known].astype(np.float64), targets[known].astype(np.float64)
    if z.size == 0:
        raise PredictionsError("fitting a temperature", ["no labelled image with a prediction: give a validation set"])
    if not np.isfinite(z).all():
        count = int((~np.isfinite(z)).sum())
        raise PredictionsError("fitting a temperature", [f"{count} logit(s) are infinite or missing: give finite ones"])

    def slope(sharpness: float) -> float:
        return float(np.dot(z, expit(z * sharpness) - y)) / z.size

    flattest, sharpest = 1.0 / GREATEST_TEMPERATURE, 1.0 / LEAST_TEMPERATURE
    if slope(flattest) >= 0.0:
        return GREATEST_TEMPERATURE
    if slope(sharpest) <= 0.0:
        return LEAST_TEMPERATURE
    return 1.0 / float(brentq(slope, flattest, sharpest, xtol=1e-12, rtol=1e-12))  # type: ignore[no-untyped-call]


def logits_of(probabilities: Floats) -> Float64s:
    """Gives logits, with probabilities of 0 and 1 taken as 1e-7 from them; NaN stays."""
    inside = np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)


def probabilities_of(scores: Floats) -> Float64s:
    """Gives probabilities of scores that may be logits: all of them are, where a single one lies outside [0, 1]."""
    known = scores[~np.isnan(scores)]
    are_logits = bool(known.size) and bool((known < 0.0).any() or (known > 1.0).any())
    return np.asarray(expit(scores) if are_logits else scores, dtype=np.float64)
