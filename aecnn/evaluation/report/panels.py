"""Small drawings finding by finding: ROC, precision over recall, calibration; of test, validation or both.

Shapes: N images, 14 findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from aecnn.evaluation.auroc import auroc, average_precision, macro_mean, roc_curve
from aecnn.evaluation.report.load import Predictions
from aecnn.evaluation.report.scores import CalibrationBin, FindingScores, Point
from aecnn.evaluation.report.squares import Curve, square, visible_points
from aecnn.findings import FINDINGS

NUM_MACRO_POINTS = 201  # false positive rates at which the macro curve averages the findings'
REACHES = (0.05, 0.1, 0.2, 0.5, 1.0)  # where the axes of a calibration may end: most findings are rare
CHANCE = ((0.0, 0.0), (1.0, 1.0))
Scores = Mapping[str, FindingScores]


@dataclass(frozen=True)
class Panel:
    """One small drawing with its figure, or the reason for its absence."""

    title: str
    figure: float | None
    drawing: Markup | None
    is_macro: bool = False


@dataclass(frozen=True)
class TestCurves:
    """The test split's curves, by finding; a finding without both classes or predictions is absent.

    Attributes:
        roc: (false positive rate, true positive rate).
        pr: (recall, precision).
        auroc: Area under ``roc``.
        auprc: Average precision.
    """

    roc: dict[str, NDArray[np.float64]]  # [K, 2]
    pr: dict[str, NDArray[np.float64]]  # [K, 2]
    auroc: dict[str, float]
    auprc: dict[str, float]


def curves_of(predictions: Predictions) -> TestCurves:
    """Computes the curves of every finding that has any."""
    roc, pr, areas, precisions = {}, {}, {}, {}
    for index, finding in enumerate(FINDINGS):
        scores, targets = predictions.scores[:, [index]], predictions.targets[:, [index]]
        if np.isnan(scores).any() or np.isnan(area := float(auroc(scores, targets)[0])):
            continue
        fpr, tpr = roc_curve(scores[:, 0], targets[:, 0])
        true, false = tpr[1:] * (targets == 1).sum(), fpr[1:] * (targets == 0).sum()
        precision = true / (true + false)
        roc[finding] = np.stack([fpr, tpr], axis=1)
        pr[finding] = np.stack([np.r_[0.0, tpr[1:]], np.r_[precision[0], precision]], axis=1)
        areas[finding], precisions[finding] = area, float(average_precision(scores, targets)[0])
    return TestCurves(roc, pr, areas, precisions)


def roc_panels(test: TestCurves | None, pooled: Scores) -> list[Panel]:
    """Gives the test split's macro curve and one panel a finding, in the findings' order; validation's where known."""
    validation = {name: scores.roc for name, scores in pooled.items() if scores.roc}
    if not validation and not (test and test.roc):
        return []
    panels = []
    for finding in FINDINGS:
        curves = _test_and_pooled(test.roc.get(finding) if test else None, validation.get(finding))
        figure = _figure(test.auroc if test else None, {name: scores.auroc for name, scores in pooled.items()}, finding)
        drawing = _roc_drawing(finding, curves) if curves else None
        panels.append(Panel(finding, figure if drawing else None, drawing))
    if test is None or not test.roc:
        return panels
    grid = np.linspace(0.0, 1.0, NUM_MACRO_POINTS)
    mean = np.mean([np.interp(grid, *curve.T) for curve in test.roc.values()], axis=0)
    macro = np.stack([np.r_[0.0, grid], np.r_[0.0, mean]], axis=1)
    drawing = _roc_drawing("mean of the findings", _test_and_pooled(macro, None))
    return [Panel("Mean of findings", macro_mean(np.array(list(test.auroc.values()))), drawing, is_macro=True), *panels]


def pr_panels(test: TestCurves | None, pooled: Scores) -> list[Panel]:
    """Gives precision over recall, one panel a finding; empty where no split has any."""
    validation = {name: scores.pr for name, scores in pooled.items() if scores.pr}
    if not validation and not (test and test.pr):
        return []
    panels = []
    for finding in FINDINGS:
        curves = _test_and_pooled(test.pr.get(finding) if test else None, validation.get(finding))
        figure = _figure(test.auprc if test else None, {name: scores.auprc for name, scores in pooled.items()}, finding)
        drawing = square(curves, description=f"Precision over recall, {finding}") if curves else None
        panels.append(Panel(finding, figure if drawing else None, drawing))
    return panels


def calibration_panels(test: Scores, pooled: Scores) -> list[Panel]:
    """Gives observed over predicted shares, one panel a finding; empty where no split has any."""
    of_test = {name: _binned(scores.calibration) for name, scores in test.items()}
    of_pooled = {name: _binned(scores.calibration) for name, scores in pooled.items()}
    if not any(of_test.values()) and not any(of_pooled.values()):
        return []
    panels = []
    for finding in FINDINGS:
        points, second = of_test.get(finding, []), of_pooled.get(finding, [])
        scores = test.get(finding) if points else pooled.get(finding)
        if not points:
            points, second = second, []
        drawing = _calibration_drawing(finding, points, second) if points else None
        panels.append(Panel(finding, scores.ece if scores and drawing else None, drawing))
    return panels


def _figure(of_test: Mapping[str, float] | None, of_pooled: Mapping[str, float | None], finding: str) -> float | None:
    """The test split's figure comes before validation's."""
    of_one = of_test.get(finding) if of_test else None
    return of_pooled.get(finding) if of_one is None else of_one


def _test_and_pooled(test: NDArray[np.float64] | None, pooled: tuple[Point, ...] | None) -> list[Curve]:
    """The one that the figure is of is drawn thick and filled; with both, validation is the thin one below."""
    curves = []
    if test is not None:
        curves.append(Curve(visible_points([(x, y) for x, y in test.tolist()]), "main", is_filled=True))
    if pooled:
        points = visible_points(pooled)
        curves.insert(0, Curve(points, "second") if curves else Curve(points, "main", is_filled=True))
    return curves


def _roc_drawing(name: str, curves: list[Curve]) -> Markup:
    return square([Curve(CHANCE, "chance"), *curves], description=f"ROC curve, {name}")


def _calibration_drawing(finding: str, points: list[Point], second: list[Point]) -> Markup:
    largest = max(max(point) for point in [*points, *second])
    reach = next(reach for reach in REACHES if largest <= reach)
    curves = [Curve(CHANCE, "chance"), Curve(second, "second"), Curve(points, "main", has_dots=True)]
    return square(curves, description=f"Calibration, {finding}", reach=reach)


def _binned(bins: tuple[CalibrationBin, ...] | None) -> list[Point]:
    pairs = [(one.mean_predicted, one.observed) for one in bins or () if one.num_images != 0]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in known]
