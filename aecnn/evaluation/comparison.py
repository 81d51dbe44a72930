"""Whether one model scores better than another on the same images: differences, intervals, p-values.

Both models are scored on the same resamples of patients, so what makes a resample easy or hard for both leaves no mark
on the difference. The p-value of a finding is two-sided, of the difference over its standard error by DeLong's method
for correlated curves, clustered by patient (`aecnn.evaluation.delong`). Of fourteen comparisons of equal models one in
two would have some p below 0.05: Holm's step-down correction (Scand. J. Statistics 1979) keeps that chance at 0.05 for
all of them together. The macro mean is one comparison of its own and is not corrected.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from aecnn.evaluation.auroc import Float64s, Floats, auroc, macro_mean
from aecnn.evaluation.bootstrap import LEVEL, Interval, percentile_interval, resample
from aecnn.evaluation.delong import patient_sums
from aecnn.evaluation.metrics import FindingFigures, null_if_nan
from aecnn.findings import FINDINGS


@dataclass(frozen=True)
class Difference:
    """AUROC of two models, and what B has more than A."""

    auroc_a: float
    auroc_b: float
    difference: float
    difference_ci: Interval | None
    standard_error: float
    p_value: float  # NaN where the standard error is 0 and the difference is not

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {name: null_if_nan(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on the same images."""

    findings: dict[str, Difference]  # those that have an AUROC for both
    p_values_holm: dict[str, float]
    macro: Difference
    why_left_out: dict[str, str]  # the other findings
    num_images: int
    num_patients: int
    num_resamples: int
    seed: int

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON; undefined figures are null."""
        return {
            "macro": self.macro.to_json(),
            "findings": {
                name: {**difference.to_json(), "p_value_holm": null_if_nan(self.p_values_holm[name])}
                for name, difference in self.findings.items()
            },
            "why_left_out": self.why_left_out,
            "num_images": self.num_images,
            "num_patients": self.num_patients,
            "interval": None
            if self.num_resamples == 0
            else {
                "method": "paired patient bootstrap",
                "num_resamples": self.num_resamples,
                "level": LEVEL,
                "seed": self.seed,
            },
        }


def compare(
    scores_a: Floats, scores_b: Floats, targets: Floats, patients: Sequence[str], *, num_resamples: int, seed: int
) -> Comparison:
    """Compares two models on the same images.

    Args:
        scores_a: [N, F] of model A; a finding whose column is NaN was not predicted.
        scores_b: [N, F] of model B.
        targets: [N, F] in {0, 1, NaN}.
        patients: [N], whose image each is.
        num_resamples: Of patients, for the intervals; 0 for none.
        seed: Of the resamples.
    """
    predicted = np.asarray(~(np.isnan(scores_a).any(axis=0) | np.isnan(scores_b).any(axis=0)))
    known = np.where(predicted, targets, np.nan)
    areas = np.array([auroc(np.where(predicted, scores, 0.0), known) for scores in (scores_a, scores_b)])
    both = np.flatnonzero(~np.isnan(areas[0]))
    sums = patient_sums(scores_b[:, both], known[:, both], patients) - patient_sums(
        scores_a[:, both], known[:, both], patients
    )
    ways = [
        resample(scores[:, both], known[:, both], patients, num_resamples=num_resamples, seed=seed)
        for scores in (scores_a, scores_b)
    ]
    moved = ways[1].auroc - ways[0].auroc
    found = {
        FINDINGS[index]: _difference(areas[:, index], moved[:, place], float(error))
        for place, (index, error) in enumerate(zip(both, sums.standard_errors(), strict=True))
    }
    macro = np.array([macro_mean(areas[0]), macro_mean(areas[1])])
    return Comparison(
        findings=found,
        p_values_holm=dict(zip(found, holm([one.p_value for one in found.values()]).tolist(), strict=True)),
        macro=_difference(macro, ways[1].macro - ways[0].macro, sums.macro_standard_error()),
        why_left_out=_why_left_out(predicted, targets, both.tolist()),
        num_images=len(targets),
        num_patients=len(set(patients)),
        num_resamples=num_resamples,
        seed=seed,
    )


def holm(p_values: Sequence[float]) -> Float64s:
    """Gives Holm's adjusted p-values, in the order given; NaN stays and does not count."""
    adjusted = np.array(p_values, dtype=np.float64)
    order = [int(index) for index in np.argsort(adjusted) if not np.isnan(adjusted[index])]
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def _difference(areas: Float64s, moved: Float64s, standard_error: float) -> Difference:
    difference = float(areas[1] - areas[0])
    interval = percentile_interval(moved)
    return Difference(
        float(areas[0]), float(areas[1]), difference, interval, standard_error, _p_value(difference, standard_error)
    )


def _p_value(difference: float, standard_error: float) -> float:
    """Two-sided, of a normal deviate; two models that never differ are as likely as can be."""
    if difference == 0.0 and standard_error == 0.0:
        return 1.0
    return 2.0 * float(ndtr(-abs(difference) / standard_error)) if standard_error > 0.0 else float("nan")


def _why_left_out(predicted: NDArray[np.bool_], targets: Floats, both: Sequence[int]) -> dict[str, str]:
    why = {}
    for index, name in enumerate(FINDINGS):
        positive, negative = int((targets[:, index] == 1).sum()), int((targets[:, index] == 0).sum())
        reason = FindingFigures(float("nan"), float("nan"), positive, negative).why_undefined
        if index not in both:
            why[name] = str(reason) if predicted[index] else "not predicted by both"
    return why
