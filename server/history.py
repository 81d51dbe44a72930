"""The events of a run's history, as plain data: the one place that knows their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aecnn.contract import HospitalCounts, RoundReport, ValidationReport
from aecnn.evaluation.auroc import macro_mean
from aecnn.evaluation.histogram import pooled
from aecnn.evaluation.metrics import Metrics, null_if_nan
from aecnn.findings import FINDINGS
from server.run_folder import now_iso
from server.wire import Answer

Event = dict[str, Any]


def start_event(run: str, run_id: str, hospitals: Mapping[str, HospitalCounts], *, refused: Mapping[str, str]) -> Event:
    """Who takes part, and with how much; who may not, and why. Hospitals know the run by its id."""
    return {
        "event": "start",
        "run": run,
        "run_id": run_id,
        "started_at": now_iso(),
        "hospitals": {name: _counts(counts) for name, counts in sorted(hospitals.items())},
        "refused": dict(refused),
    }


def resume_event(round_number: int, hospitals: Sequence[str]) -> Event:
    """An interrupted run goes on after its last finished round."""
    return {"event": "resume", "round": round_number, "hospitals": list(hospitals), "at": now_iso()}


def joined_event(hospital: str, counts: HospitalCounts, round_number: int) -> Event:
    """A hospital that came late, and the round from which it takes part."""
    return {"event": "joined", "hospital": hospital, "counts": _counts(counts), "round": round_number}


def left_event(hospital: str, reason: str, round_number: int) -> Event:
    """A hospital that withdrew or was revoked, and the round in which that was learnt."""
    return {"event": "left", "hospital": hospital, "reason": reason, "round": round_number}


def attempt_event(round_number: int, attempt: int, reason: str) -> Event:
    """A round that is tried again: too few updates were fit to average."""
    return {"event": "attempt", "round": round_number, "attempt": attempt, "reason": reason}


def test_event(round_number: int, metrics: Metrics) -> Event:
    """How the global model after a round scores on the centre's test images; nothing is chosen by it."""
    return {
        "event": "test",
        "round": round_number,
        "macro_auroc": null_if_nan(metrics.macro_auroc),
        "findings": {name: null_if_nan(figures.auroc) for name, figures in metrics.findings.items()},
        "num_images": metrics.num_images,
    }


def delivered_event(hospitals: Sequence[str]) -> Event:
    """Who has the released model."""
    return {"event": "delivered", "hospitals": list(hospitals), "at": now_iso()}


def validation_event(round_number: int, answers: Sequence[Answer]) -> Event:
    """How the global model after a round scores on all hospitals' validation images, pooled by adding.

    A hospital may keep its sums or its histogram to itself: each is pooled over those that gave it.
    """
    areas, bounds = np.full(len(FINDINGS), np.nan), np.full(len(FINDINGS), np.nan)
    histograms = [answer.histogram for answer in answers if answer.histogram is not None]
    if histograms:
        histogram = pooled(histograms)
        areas, bounds = histogram.auroc(), histogram.auroc_error_bound()
    judged = [answer for answer in answers if answer.validation is not None or answer.histogram is not None]
    return {
        "event": "validation",
        "round": round_number,
        "macro_auroc": null_if_nan(macro_mean(areas)),
        "macro_auroc_error_bound": null_if_nan(macro_mean(bounds)),  # what binning can have moved it by
        "findings": {name: null_if_nan(area) for name, area in zip(FINDINGS, areas, strict=True)},
        **_mean_losses([answer.validation for answer in judged if answer.validation is not None]),
        "hospitals": {answer.origin.hospital: _validation_of_one(answer) for answer in judged},
    }


def answer_event(round_number: int, answer: Answer) -> Event:
    """One hospital's answer as it comes, before admission; for those who follow the run."""
    return {
        "event": "answer",
        "round": round_number,
        "hospital": answer.origin.hospital,
        "training": None if answer.report is None else _training_of_one(answer.report),
        "validation": _validation_of_one(answer),
        "bytes": _num_bytes(answer),
    }


def round_event(
    round_number: int,
    answers: Sequence[Answer],
    *,
    admitted: Sequence[str],
    attempt: int,
    seconds: float,
    refused: Mapping[str, str],
    missing: Sequence[str],
) -> Event:
    """What each hospital trained in a round, who was refused and why, and who did not answer."""
    return {
        "event": "round",
        "round": round_number,
        "attempt": attempt,
        "seconds": seconds,
        "hospitals": {
            answer.origin.hospital: _training_of_one(answer.report) for answer in answers if answer.report is not None
        },
        "admitted": list(admitted),
        "bytes": {answer.origin.hospital: _num_bytes(answer) for answer in answers},  # of weights, as they came
        "refused": dict(refused),
        "missing": list(missing),
    }


def end_event(*, status: str, released_round: int | None, seconds: float, reason: str | None) -> Event:
    """How the run ended; status is ``completed`` or ``failed``."""
    return {
        "event": "end",
        "status": status,
        "released_round": released_round,
        "finished_at": now_iso(),
        "seconds": seconds,
        "reason": reason,
    }


def _training_of_one(report: RoundReport) -> Event:
    return {
        "num_images": report.num_images,
        "num_steps": report.num_steps,
        "images_seen": report.images_seen,
        "bce": _ratio(report.bce_sum, report.images_seen),
        "mse": _ratio(report.mse_sum, report.images_seen),
        "latent_alive_fraction": _ratio(report.alive_pixels, report.lit_pixels),
        "seconds": report.seconds,
    }


def _validation_of_one(answer: Answer) -> Event:
    shown: Event = {}
    if answer.histogram is not None:
        shown["macro_auroc"] = null_if_nan(macro_mean(answer.histogram.auroc()))
    if answer.validation is not None:
        shown |= _mean_losses([answer.validation])
    return shown


def _counts(counts: HospitalCounts) -> Event:
    positives = counts.positives
    return {
        "num_train_images": counts.num_train_images,
        "num_train_patients": counts.num_train_patients,
        "num_validation_images": counts.num_validation_images,
        "num_validation_patients": counts.num_validation_patients,
        "num_skipped_images": counts.num_skipped_images,
        "positives": None if positives is None else dict(zip(FINDINGS, positives, strict=True)),
    }


def _num_bytes(answer: Answer) -> int:
    return 0 if answer.weights is None else answer.weights.num_bytes


def _mean_losses(reports: Sequence[ValidationReport]) -> Event:
    num_images = sum(report.num_images for report in reports)
    return {
        "bce": _ratio(sum(report.bce_sum for report in reports), num_images),
        "mse": _ratio(sum(report.mse_sum for report in reports), num_images),
        "num_images": num_images,
    }


def _ratio(total: float | None, count: int | None) -> float | None:
    return null_if_nan(total / count) if count and total is not None else None
