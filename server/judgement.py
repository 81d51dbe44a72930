"""What the hospitals' histograms say of one model, kept until it is released, and the history's event about it.

Figures are those of the pooled scores (`aecnn.evaluation.pooled`); a hospital's own come from its own histogram.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from aecnn.evaluation.auroc import Float64s, macro_mean
from aecnn.evaluation.calibration import expected_calibration_error
from aecnn.evaluation.histogram import ScoreHistogram
from aecnn.evaluation.metrics import null_if_nan
from aecnn.evaluation.placements import PlacementSums, added, interval, unseen_squares
from aecnn.evaluation.pooled import PooledScores, pooled
from aecnn.findings import FINDINGS
from aecnn.model.weights import pack_weights, unpack_weights
from server.history import Event
from server.wire import Answer

SPECIFICITY = 0.9  # at which the sensitivity is told
BY_PATIENT, BY_IMAGE = "by patient", "by image"
_FINE, _FLOORED, _NONE, _ROUND = "fine", "floored", "none", "round"
NO_SUMS = "gave no sums for intervals by patient: "  # then why, which may be in a hospital's words
_NO_HISTOGRAM = "gave no histogram of its scores: its site file keeps it, or fewer patients validate than its floor"
_NOT_JUDGED = "did not judge the released model"
_BELOW_FLOOR = "fewer patients with it, or without it, than the hospital's floor; or nobody is labelled for it"
_BELOW_TWICE = "fewer patients with it, or without it, than twice the hospital's floor, which floored counts need"


@dataclass(frozen=True)
class Judgement:
    """How the hospitals judged the model after a round: their histograms, None of who kept it."""

    round_number: int
    histograms: Mapping[str, ScoreHistogram | None]

    @classmethod
    def of(cls, round_number: int, answers: Sequence[Answer]) -> "Judgement":
        """Gives what answers say of the model after a round."""
        return cls(round_number, {answer.origin.hospital: answer.histogram for answer in answers})

    @property
    def given(self) -> dict[str, ScoreHistogram]:
        """The histograms that were given, in hospital-name order."""
        found = sorted(self.histograms.items())
        return {name: histogram for name, histogram in found if histogram is not None}

    @property
    def told(self) -> list[str]:
        """Who told at least one finding."""
        return [name for name, histogram in self.given.items() if histogram.told.any()]

    @property
    def mode(self) -> str:
        """How the histograms are counted: all fine, all floored, or mixed."""
        modes = {_FLOORED if histogram.is_floored else _FINE for histogram in self.given.values()}
        return "mixed" if len(modes) > 1 else next(iter(modes), _FINE)

    @cached_property
    def pooled(self) -> PooledScores:
        """All hospitals' scores."""
        return pooled(self.given.values())

    def packed(self) -> bytes:
        """Gives it as bytes, to be kept."""
        arrays: dict[str, Any] = {_ROUND: np.array([self.round_number])}
        for name, histogram in self.histograms.items():
            if histogram is None:
                arrays[f"{_NONE}/{name}"] = np.zeros(0, dtype=np.int32)
            else:
                arrays[f"{_FLOORED if histogram.is_floored else _FINE}/{name}"] = histogram.counts.astype(np.int32)
        return zlib.compress(pack_weights(arrays).data, level=1)

    @classmethod
    def unpacked(cls, content: bytes) -> "Judgement":
        """Reads what `packed` gave."""
        arrays = unpack_weights(np.frombuffer(zlib.decompress(content), dtype=np.uint8), subject="the kept judgement")
        round_number = int(arrays.pop(_ROUND)[0])
        histograms: dict[str, ScoreHistogram | None] = {}
        for key, counts in arrays.items():
            mode, name = key.split("/", 1)
            kept = ScoreHistogram(counts.astype(np.int64), is_floored=mode == _FLOORED)
            histograms[name] = None if mode == _NONE else kept
        return cls(round_number, dict(sorted(histograms.items())))


@dataclass(frozen=True)
class _Errors:
    """Standard errors of the pooled figures, and how they come about."""

    of_findings: Float64s
    of_macro: float
    kind: str | None


def judged_event(
    judgement: Judgement, sums: Mapping[str, PlacementSums], *, members: Iterable[str], unplaced: Mapping[str, str]
) -> Event:
    """How the released model scores on all hospitals' validation images, with intervals, and what was withheld.

    Intervals are by patient where every hospital in the pooled histogram gave its sums, else by image: too narrow where
    patients have several, and none for the macro mean. Nor has it one over a finding with a class of a single patient.

    Args:
        judgement: Of the released model.
        sums: Of placements, by hospital.
        members: Who took part to the end.
        unplaced: Who gave no sums → why.
    """
    scores, errors = judgement.pooled, _errors(judgement, sums)
    areas, bounds, precisions = scores.auroc(), scores.auroc_error_bound(), scores.average_precision()
    return {
        "event": "judged",
        "round": judgement.round_number,
        "mode": judgement.mode,
        "hospitals": judgement.told,
        "macro_auroc": null_if_nan(macro_mean(areas)),
        "macro_auroc_error_bound": null_if_nan(macro_mean(bounds)),
        "macro_auroc_ci": _interval(macro_mean(areas), errors.of_macro),
        "interval": errors.kind,
        "findings": {
            name: {
                "auroc": null_if_nan(areas[index]),
                "error_bound": null_if_nan(bounds[index]),
                "standard_error": null_if_nan(errors.of_findings[index]),
                "auroc_ci": _interval(float(areas[index]), float(errors.of_findings[index])),
                "auprc": null_if_nan(precisions[index]),
                **_curves(scores, index),
                **dict(zip(("num_positive", "num_negative"), _counts(scores, index), strict=True)),
            }
            for index, name in enumerate(FINDINGS)
        },
        "by_hospital": {name: _of_one(histogram) for name, histogram in judgement.given.items()},
        "withheld": _withheld(judgement, members, unplaced),
    }


def _errors(judgement: Judgement, sums: Mapping[str, PlacementSums]) -> _Errors:
    scores, told = judgement.pooled, judgement.told
    if not scores.is_defined.any():
        return _Errors(np.full(len(FINDINGS), np.nan), float("nan"), None)
    if not set(told) <= set(sums):
        unseen = unseen_squares(judgement.given.values(), scores.placed)
        return _Errors(scores.standard_error_by_image(unseen), float("nan"), BY_IMAGE)
    total = added(sums[name] for name in told)
    errors = total.standard_errors(scores)
    # A class of one patient, or pairs that are all in order, add nothing to the mean's error, as if they were certain.
    is_sure = bool((errors[scores.is_defined] > 0.0).all())
    return _Errors(errors, total.macro_standard_error() if is_sure else float("nan"), BY_PATIENT)


def _curves(scores: PooledScores, finding: int) -> Event:
    if not scores.is_defined[finding]:
        return dict.fromkeys(("ece", "sensitivity_at_specificity", "calibration", "roc", "pr"))
    calibration = scores.calibration(finding)
    sensitivity = scores.sensitivity_at(finding, specificity=SPECIFICITY)
    return {
        "ece": null_if_nan(expected_calibration_error(calibration)),
        "sensitivity_at_specificity": {"specificity": SPECIFICITY, "sensitivity": sensitivity},
        "calibration": [point.to_json() for point in calibration],
        "roc": scores.roc(finding),
        "pr": scores.precision_recall(finding),
    }


def _counts(scores: PooledScores, finding: int) -> tuple[int, int] | tuple[None, None]:
    """Positive and negative images; None where no histogram tells any, which is not to say that there are none."""
    positive, negative = int(scores.num_positive[finding]), int(scores.num_negative[finding])
    return (positive, negative) if positive or negative else (None, None)


def _of_one(histogram: ScoreHistogram) -> Event:
    """How the model scores at one hospital, by finding; intervals by image, null where it withholds the finding."""
    scores = PooledScores.of(histogram)
    areas, errors = scores.auroc(), scores.standard_error_by_image(unseen_squares([histogram], scores.placed))
    return {
        "macro_auroc": null_if_nan(macro_mean(areas)),
        "num_findings": int(scores.is_defined.sum()),
        "findings": {name: null_if_nan(area) for name, area in zip(FINDINGS, areas, strict=True)},
        "auroc_ci": {name: _interval(float(areas[index]), float(errors[index])) for index, name in enumerate(FINDINGS)},
        "counts": {
            name: list(_counts(scores, index)) if histogram.told[index] else None for index, name in enumerate(FINDINGS)
        },
    }


def _withheld(judgement: Judgement, members: Iterable[str], unplaced: Mapping[str, str]) -> dict[str, list[str]]:
    """What did not leave each hospital, as sentences."""
    withheld: dict[str, list[str]] = {}
    for name in sorted({*members, *judgement.histograms}):
        histogram, reasons = judgement.histograms.get(name), []
        if name not in judgement.histograms:
            reasons.append(_NOT_JUDGED)
        elif histogram is None:
            reasons.append(_NO_HISTOGRAM)
        elif not histogram.told.all():
            absent = [finding for finding, is_told in zip(FINDINGS, histogram.told, strict=True) if not is_told]
            reasons.append(f"{', '.join(absent)}: {_BELOW_TWICE if histogram.is_floored else _BELOW_FLOOR}")
        if name in unplaced:
            reasons.append(f"{NO_SUMS}{unplaced[name]}")
        if reasons:
            withheld[name] = reasons
    return withheld


def _interval(figure: float, standard_error: float) -> list[float] | None:
    found = interval(figure, standard_error)
    return None if found is None else list(found)
