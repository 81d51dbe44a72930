"""Standard errors of AUROC without resampling, and of the difference of two AUROCs on the same images.

DeLong, DeLong & Clarke-Pearson (Biometrics 1988) give every image a *placement*: of a positive image the share of
negative images that it stands above, of a negative one the share of positive images that stand above it, ties half.
Both kinds have AUROC as their mean, and their spread gives its variance. Images of one patient are no independent
draws: Obuchowski (Biometrics 1997) sums the placements, less AUROC, of each patient's positive images, A, and of the
negative ones, B, and takes

    Var = I₁/(I₁ − 1)·Σ A²/m² + I₀/(I₀ − 1)·Σ B²/n² + 2·I/(I − 1)·Σ A·B/(m·n)

with m positive and n negative images, and I₁, I₀ and I patients with a positive one, a negative one, and either. With
one image a patient that is DeLong's variance. A and B of the difference of two models are the differences of theirs, so
its variance follows in the same way. Of a macro mean each patient's influence A/m + B/n is averaged over the findings,
and I/(I − 1)·Σ (mean influence)² is its variance.

Shapes: N images, F findings, P patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from aecnn.evaluation.auroc import Float64s, Floats, labelled


@dataclass(frozen=True)
class PatientSums:
    """What each patient's images contribute to the error of every finding's AUROC; NaN in a finding without a class."""

    of_positives: Float64s  # [P, F]: A of the module
    of_negatives: Float64s  # [P, F]: B
    num_positive: NDArray[np.int64]  # [P, F] images
    num_negative: NDArray[np.int64]  # [P, F]

    def __sub__(self, other: "PatientSums") -> "PatientSums":
        """Gives the sums of the difference of two models' AUROCs on the same images."""
        return PatientSums(
            self.of_positives - other.of_positives,
            self.of_negatives - other.of_negatives,
            self.num_positive,
            self.num_negative,
        )

    def standard_errors(self) -> Float64s:
        """Gives each finding's standard error, [F]; NaN where a class is of fewer than two patients."""
        with_positive, with_negative = self.num_positive > 0, self.num_negative > 0
        positives, negatives = self.num_positive.sum(axis=0), self.num_negative.sum(axis=0)
        squares = [(self.of_positives**2).sum(axis=0), (self.of_negatives**2).sum(axis=0)]
        products = (self.of_positives * self.of_negatives).sum(axis=0)
        factors = [_small_sample(mask.sum(axis=0)) for mask in (with_positive, with_negative)]
        both = _small_sample((with_positive | with_negative).sum(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):  # findings without a class are NaN already
            variance = factors[0] * squares[0] / positives**2 + factors[1] * squares[1] / negatives**2
            variance += 2.0 * both * products / (positives * negatives)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)

    def macro_standard_error(self) -> float:
        """Gives the standard error of the mean AUROC of the defined findings.

        NaN when none is defined, or where a finding has no standard error of its own: one patient's class adds nothing
        to the sum of squares, as if it were certain.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            influence = self.of_positives / self.num_positive.sum(axis=0)
            influence += self.of_negatives / self.num_negative.sum(axis=0)
        defined = influence[:, np.isfinite(influence).all(axis=0)]
        if defined.shape[1] == 0 or np.isnan(self.standard_errors()[np.isfinite(influence).all(axis=0)]).any():
            return float("nan")
        patients = int((self.num_positive + self.num_negative > 0).any(axis=1).sum())
        return float(np.sqrt(_small_sample(np.array(patients)) * (defined.mean(axis=1) ** 2).sum()))


def patient_sums(scores: Floats, targets: Floats, patients: Sequence[str]) -> PatientSums:
    """Sums placements, less AUROC, by patient.

    For DeLong's own variance, of images that are independent draws, give each image a patient of its own.

    Args:
        scores: [N, F]; a finding whose column is NaN was not predicted and is NaN in the result.
        targets: [N, F] in {0, 1, NaN}.
        patients: [N], whose image each is.
    """
    names, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    shape = (len(names), scores.shape[1])
    sums, counts = np.full((2, *shape), np.nan), np.zeros((2, *shape), dtype=np.int64)
    for finding in range(scores.shape[1]):
        known, positive = labelled(scores[:, finding], targets[:, finding])
        owner = patient_of[~np.isnan(targets[:, finding])]
        for kind, mask in enumerate((positive, ~positive)):
            counts[kind, :, finding] = np.bincount(owner[mask], minlength=len(names))
        if np.isnan(known).any() or positive.all() or not positive.any():
            continue
        of_positives, of_negatives = placements(known, positive)
        area = of_positives.mean()
        for kind, (mask, placed) in enumerate(((positive, of_positives), (~positive, of_negatives))):
            sums[kind, :, finding] = np.bincount(owner[mask], weights=placed - area, minlength=len(names))
    return PatientSums(sums[0], sums[1], counts[0], counts[1])


def placements(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Float64s, Float64s]:
    """Gives the placements of one finding's positive images and of its negative ones, in their order.

    By ranks (Sun & Xu, IEEE Signal Processing Letters 2014): a positive image's rank among all images less its rank
    among the positive ones is the number of negative images below it.

    Args:
        scores: [N], finite.
        positive: [N], both classes there.
    """
    ranks = rankdata(scores)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    below = (ranks[positive] - rankdata(scores[positive])) / num_negative
    above = 1.0 - (ranks[~positive] - rankdata(scores[~positive])) / num_positive
    return below, above


def _small_sample(count: NDArray[np.integer]) -> Float64s:
    """I/(I − 1), NaN where that has no meaning."""
    number = np.asarray(count, dtype=np.float64)
    factor = np.divide(number, number - 1.0, out=np.full(number.shape, np.nan), where=number > 1)
    return np.asarray(factor, dtype=np.float64)
