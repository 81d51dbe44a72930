"""All that can be told of a model whose scores are at hand: intervals, calibration, subgroups, a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aecnn.evaluation.auroc import Floats, at_specificity, auroc
from aecnn.evaluation.bootstrap import NUM_RESAMPLES, Interval, percentile_interval, resample
from aecnn.evaluation.calibration import calibration_curve
from aecnn.evaluation.metrics import Baseline, FindingFigures, Metrics, Resampling, Subgroup, score
from aecnn.evaluation.subgroups import MIN_PATIENTS, Groups, names_of, view_scores
from aecnn.findings import FINDINGS


@dataclass(frozen=True)
class Judging:
    """How to judge.

    Attributes:
        num_resamples: Of patients, for the intervals; 0 for none.
        seed: Of the resamples.
        min_patients: Groups of fewer are suppressed.
    """

    num_resamples: int = NUM_RESAMPLES
    seed: int = 0
    min_patients: int = MIN_PATIENTS


@dataclass(frozen=True)
class Scored:
    """A model's scores on images, and what is known of these. N images, F findings."""

    scores: Floats  # [N, F] logits or probabilities; a finding whose column is NaN was not predicted
    probabilities: Floats  # [N, F] the same as probabilities
    targets: Floats  # [N, F] in {0, 1, NaN}
    patients: Sequence[str]  # [N]

    def of(self, rows: Sequence[int]) -> "Scored":
        """Gives those of some images."""
        return Scored(
            self.scores[rows], self.probabilities[rows], self.targets[rows], [self.patients[row] for row in rows]
        )


def judge(metrics: Metrics, scored: Scored, groups: Groups, how: Judging) -> Metrics:
    """Gives the figures with an interval by patient, calibration, subgroups and the view-position baseline added.

    Args:
        metrics: What `score` gave for the same scores.
        scored: The scores.
        groups: [N] each attribute's group of every image.
        how: Resamples and the patient floor of subgroups.
    """
    subgroups = [
        _subgroup(scored, attribute, name, groups, how)
        for attribute in groups
        for name in names_of(attribute, groups[attribute])
    ]
    return replace(
        _with_intervals(_with_calibration(metrics, scored), scored, how),
        subgroups=tuple(subgroups),
        view_baseline=_view_baseline(scored, groups, how),
    )


def _with_calibration(metrics: Metrics, scored: Scored) -> Metrics:
    """Adds the calibration curve, and sensitivity at a fixed specificity, of the findings that were predicted."""

    def of(index: int, figures: FindingFigures) -> FindingFigures:
        probabilities, targets = scored.probabilities[:, index], scored.targets[:, index]
        if np.isnan(probabilities).any():
            return figures
        return replace(
            figures,
            calibration=calibration_curve(probabilities, targets),
            at_specificity=at_specificity(probabilities, targets),
        )

    return replace(metrics, findings={name: of(index, metrics.findings[name]) for index, name in enumerate(FINDINGS)})


def _with_intervals(metrics: Metrics, scored: Scored, how: Judging) -> Metrics:
    if how.num_resamples == 0:
        return metrics
    resampled = resample(scored.scores, scored.targets, scored.patients, num_resamples=how.num_resamples, seed=how.seed)
    findings, undefined = dict(metrics.findings), {}
    for index, (name, figures) in enumerate(metrics.findings.items()):
        if figures.is_defined:
            if _has_two_patients_a_class(scored, index):
                findings[name] = replace(figures, auroc_ci=_spread(percentile_interval(resampled.auroc[:, index])))
            undefined[name] = int(resampled.num_undefined[index])
    return replace(
        metrics,
        findings=findings,
        macro_auroc_ci=percentile_interval(resampled.macro),
        resampling=Resampling(how.num_resamples, how.seed, {name: count for name, count in undefined.items() if count}),
    )


def _has_two_patients_a_class(scored: Scored, index: int) -> bool:
    """Whether other patients could be drawn in either class: a resample without the only one leaves it undefined."""
    targets, patients = scored.targets[:, index], np.asarray(scored.patients, dtype=object)
    return all(len(set(patients[targets == true_class])) > 1 for true_class in (0, 1))


def _spread(interval: Interval | None) -> Interval | None:
    """None where no resample moves the figure: that all pairs of a few patients are in order is no certainty."""
    return None if interval is None or interval[0] == interval[1] else interval


def _subgroup(scored: Scored, attribute: str, name: str, groups: Groups, how: Judging) -> Subgroup:
    part = scored.of(np.flatnonzero(groups[attribute] == name).tolist())
    metrics = score(part.scores, part.targets, part.patients)
    if metrics.num_patients < how.min_patients:
        return Subgroup(attribute, name, None)
    return Subgroup(attribute, name, _with_intervals(_with_calibration(metrics, part), part, how))


def _view_baseline(scored: Scored, groups: Groups, how: Judging) -> Baseline | None:
    """AUROC of the view position alone, of the findings that were predicted; None where the view is not known."""
    by_view = view_scores(groups["view"], scored.targets) if "view" in groups else None
    if by_view is None:
        return None
    scores, targets = by_view
    areas = auroc(scores, targets)
    areas[np.isnan(scored.scores).any(axis=0)] = np.nan
    interval = None
    if how.num_resamples:
        resampled = resample(
            scores[:, ~np.isnan(areas)],
            targets[:, ~np.isnan(areas)],
            scored.patients,
            num_resamples=how.num_resamples,
            seed=how.seed,
        )
        interval = percentile_interval(resampled.macro)
    return Baseline(dict(zip(FINDINGS, areas.tolist(), strict=True)), interval)
