"""The events of a run's history, as plain data: the one place that knows their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from aecnn.contract import HospitalCounts, RoundReport, ValidationReport
from aecnn.evaluation.auroc import macro_mean
from aecnn.evaluation.histogram import pooled
from aecnn.evaluation.metrics import null_if_nan
from aecnn.findings import FINDINGS
from server.run_folder import now_iso
from server.wire import Answer

Event = dict[str, Any]


def start_event(run: str, hospitals: Mapping[str, HospitalCounts]) -> Event:
    """Who takes part, and with how much."""
    return {
        "event": "start",
        "run": run,
        "started_at": now_iso(),
        "hospitals": {
            name: {
                "num_train_images": counts.num_train_images,
                "num_train_patients": counts.num_train_patients,
                "num_validation_images": counts.num_validation_images,
                "num_validation_patients": counts.num_validation_patients,
                "num_skipped_images": counts.num_skipped_images,
                "positives": None if counts.positives is None else dict(zip(FINDINGS, counts.positives, strict=True)),
            }
            for name, counts in sorted(hospitals.items())
        },
    }


def validation_event(round_number: int, answers: Sequence[Answer]) -> Event:
    """How the global model after a round scores on all hospitals' validation images, pooled by adding."""
    judged = [answer for answer in answers if answer.validation is not None and answer.histogram is not None]
    histogram = pooled([answer.histogram for answer in judged if answer.histogram is not None])
    areas, bounds = histogram.auroc(), histogram.auroc_error_bound()
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
    }


def round_event(
    round_number: int, answers: Sequence[Answer], *, seconds: float, refused: Mapping[str, str], missing: Sequence[str]
) -> Event:
    """What each hospital trained in a round, who was refused and why, and who did not answer."""
    return {
        "event": "round",
        "round": round_number,
        "seconds": seconds,
        "hospitals": {
            answer.origin.hospital: _training_of_one(answer.report) for answer in answers if answer.report is not None
        },
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
    validation, histogram = answer.validation, answer.histogram
    if validation is None or histogram is None:
        return {}
    return {"macro_auroc": null_if_nan(macro_mean(histogram.auroc())), **_mean_losses([validation])}


def _mean_losses(reports: Sequence[ValidationReport]) -> Event:
    num_images = sum(report.num_images for report in reports)
    return {
        "bce": _ratio(sum(report.bce_sum for report in reports), num_images),
        "mse": _ratio(sum(report.mse_sum for report in reports), num_images),
        "num_images": num_images,
    }


def _ratio(total: float, count: int) -> float | None:
    return null_if_nan(total / count) if count else None
