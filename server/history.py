"""The events of a run's history, as plain data: the one place that knows their keys.

But for `judged`, of the released model, which `server.judgement` makes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aecnn.contract import HospitalCounts, RoundReport, ValidationReport
from aecnn.evaluation.auroc import macro_mean
from aecnn.evaluation.metrics import Metrics, null_if_nan
from aecnn.evaluation.noised import auroc_of_noised
from aecnn.evaluation.pooled import PooledScores, pooled
from aecnn.findings import FINDINGS
from server.run_folder import now_iso
from server.wire import Answer

Event = dict[str, Any]


def start_event(
    run: str,
    run_id: str,
    hospitals: Mapping[str, HospitalCounts],
    *,
    refused: Mapping[str, str],
    is_private: bool = False,
    central_privacy: Event | None = None,
) -> Event:
    """Who takes part, and with how much; who may not, and why. Hospitals know the run by its id."""
    return {
        "event": "start",
        "run": run,
        "run_id": run_id,
        "started_at": now_iso(),
        "hospitals": {name: counts_told(counts, is_private=is_private) for name, counts in sorted(hospitals.items())},
        "refused": dict(refused),
        **({} if central_privacy is None else {"central_privacy": central_privacy}),
    }


def resume_event(round_number: int, hospitals: Sequence[str]) -> Event:
    """An interrupted run goes on after its last finished round."""
    return {"event": "resume", "round": round_number, "hospitals": list(hospitals), "at": now_iso()}


def joined_event(hospital: str, counts: HospitalCounts, round_number: int, *, is_private: bool) -> Event:
    """A hospital that came late, and the round from which it takes part."""
    told = counts_told(counts, is_private=is_private)
    return {"event": "joined", "hospital": hospital, "counts": told, "round": round_number}


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

    A hospital may keep its sums or its histogram to itself: each is pooled over those that gave it. Under differential
    privacy the pooled histogram has the noise of all that gave it.
    """
    areas, bounds = np.full(len(FINDINGS), np.nan), np.full(len(FINDINGS), np.nan)
    noised = [answer.noised for answer in answers if answer.noised is not None]
    if noised:
        areas = auroc_of_noised(np.sum(noised, axis=0))
    histograms = [answer.histogram for answer in answers if answer.histogram is not None]
    if histograms:
        scores = pooled(histograms)
        areas, bounds = scores.auroc(), scores.auroc_error_bound()
    judged = [answer for answer in answers if _has_judged(answer)]
    return {
        "event": "validation",
        "round": round_number,
        **({"is_noised": True} if noised else {}),
        "macro_auroc": null_if_nan(macro_mean(areas)),
        "macro_auroc_error_bound": null_if_nan(macro_mean(bounds)),  # what binning can have moved it by
        "findings": {name: null_if_nan(area) for name, area in zip(FINDINGS, areas, strict=True)},
        **_mean_losses([answer.validation for answer in judged if answer.validation is not None]),
        **({"num_images": None} if noised else {}),  # nobody tells how many
        "hospitals": {answer.origin.hospital: _validation_of_one(answer) for answer in judged},
    }


def answer_event(round_number: int, answer: Answer, *, cost: Event | None) -> Event:
    """One hospital's answer as it comes, before admission; for those who follow the run.

    Args:
        round_number: What it answers.
        answer: What came.
        cost: What it cost the patients in privacy (`server.privacy.cost_of`); None where that is nothing.
    """
    return {
        "event": "answer",
        "round": round_number,
        "hospital": answer.origin.hospital,
        "training": None if answer.report is None else _training_of_one(answer.report),
        "validation": _validation_of_one(answer),
        "bytes": _num_bytes(answer),
        **({} if cost is None else {"cost": cost}),
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
    privacy: Mapping[str, Event],
    central_privacy: Event | None = None,
) -> Event:
    """What each hospital trained in a round, who was refused and why, and who did not answer.

    Of privacy it has what each hospital's patients have spent so far, whether averaged or not, and what the centre's
    own noise amounts to.
    """
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
        **({"privacy": dict(privacy)} if privacy else {}),
        **({} if central_privacy is None else {"central_privacy": central_privacy}),
    }


def end_event(
    *,
    status: str,
    released_round: int | None,
    seconds: float,
    reason: str | None,
    privacy: Mapping[str, Event],
) -> Event:
    """How the run ended, and what it cost in privacy; status is ``completed`` or ``failed``."""
    return {
        "event": "end",
        "status": status,
        "released_round": released_round,
        "finished_at": now_iso(),
        "seconds": seconds,
        "reason": reason,
        **({"privacy": dict(privacy)} if privacy else {}),
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
    if answer.noised is not None:
        shown["macro_auroc"] = null_if_nan(macro_mean(auroc_of_noised(answer.noised)))
    if answer.histogram is not None and answer.histogram.told.any():  # else nothing of it is in the pooled figure
        shown["macro_auroc"] = null_if_nan(macro_mean(PooledScores.of(answer.histogram).auroc()))
    if answer.validation is not None:
        shown |= _mean_losses([answer.validation])
    return shown


def counts_told(counts: HospitalCounts, *, is_private: bool) -> Event:
    """Gives what a hospital tells of its size; under privacy a declared number of patients, and None for the rest."""
    positives = counts.positives
    if is_private:
        told = dict.fromkeys(("num_train_images", "num_validation_images", "num_validation_patients"))
        return {**told, "num_train_patients": counts.num_train_patients, "num_skipped_images": None, "positives": None}
    return {
        "num_train_images": counts.num_train_images,
        "num_train_patients": counts.num_train_patients,
        "num_validation_images": counts.num_validation_images,
        "num_validation_patients": counts.num_validation_patients,
        "num_skipped_images": counts.num_skipped_images,
        "positives": None if positives is None else dict(zip(FINDINGS, positives, strict=True)),
    }


def _has_judged(answer: Answer) -> bool:
    return any(part is not None for part in (answer.validation, answer.histogram, answer.noised))


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
