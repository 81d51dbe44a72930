"""Which answers may enter the average. A refusal is a sentence that names what was found."""

from collections.abc import Collection, Mapping
from statistics import median

import numpy as np
from numpy.typing import NDArray

from aecnn.contract import HospitalCounts, code_fingerprint
from server.members import Enrolled
from server.spool import SpooledWeights
from server.wire import Answer

_SHOWN = 3


def fault_of_joining(answer: Answer, *, accepted: Collection[str], enrolled: Enrolled | None) -> str | None:
    """Gives why a hospital may not join, or None.

    Args:
        answer: To the question who it is.
        accepted: Code fingerprints that may take part.
        enrolled: What it declared at its enrolment; None in a simulation.
    """
    counts = answer.counts
    if counts is None:
        return "does not say how much it holds"
    fault = _fault_of_code(answer, accepted)
    if fault is not None or enrolled is None:
        return fault
    images = counts.num_train_images + counts.num_validation_images
    patients = counts.num_train_patients + counts.num_validation_patients
    for found, declared, what in (
        (images, enrolled.num_images, "images"),
        (patients, enrolled.num_patients, "patients"),
    ):
        if found > declared:
            return f"holds {found} {what}, and {declared} were declared at its enrolment: enrol it anew"
    return None


def fault_of_judgement(
    answer: Answer, *, round_number: int, accepted: Collection[str], counts: HospitalCounts
) -> str | None:
    """Gives why an answer's origin or its validation figures are refused, or None.

    Args:
        answer: What arrived.
        round_number: The round it must answer.
        accepted: Code fingerprints that may take part.
        counts: What the hospital declared when it joined.
    """
    origin = answer.origin
    if origin.round != round_number:
        return f"answers round {origin.round}, and this is round {round_number}"
    fault = _fault_of_code(answer, accepted)
    if fault is not None:
        return fault
    declared = counts.num_validation_images  # there may be fewer: patients withdraw during a run
    if answer.validation is not None and answer.validation.num_images > declared:
        return f"claims {answer.validation.num_images} validation images, and declared {declared} when it joined"
    if answer.histogram is not None:
        largest = int(answer.histogram.counts.sum(axis=(1, 2)).max())
        held = declared if answer.validation is None else answer.validation.num_images
        if largest > held:
            return f"its histogram counts {largest} images, and it has {held}"
    return None


def fault_of_update(answer: Answer, *, counts: HospitalCounts, model: SpooledWeights) -> str | None:
    """Gives why an answer's trained weights may not enter the average by their form, or None.

    Args:
        answer: What arrived.
        counts: What the hospital declared when it joined.
        model: The global weights that were sent: the names, shapes and dtypes an update must have.
    """
    if answer.report is None or answer.weights is None:
        return "holds no trained weights or no report"
    claimed = answer.report.num_images
    if claimed > counts.num_train_images:
        return f"claims {claimed} training images, and declared {counts.num_train_images} when it joined"
    found, expected = answer.weights.tensors, model.tensors
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))[:_SHOWN]
        return f"its tensors are not the model's; the first that differ: {', '.join(odd)}"
    for name, tensor in found.items():
        if tensor != expected[name]:
            wanted = expected[name]
            return f"tensor {name!r} is {tensor.dtype} {tensor.shape}, expected {wanted.dtype} {wanted.shape}"
    return None


def faults_of_values(
    updates: Mapping[str, SpooledWeights], *, model: SpooledWeights, max_norm_ratio: float
) -> dict[str, str]:
    """Gives why updates of the right form may not enter the average, by hospital; two models in memory at most.

    Args:
        updates: By hospital.
        model: The global weights that were sent.
        max_norm_ratio: Of an update's norm to the round's median norm.
    """
    faults: dict[str, str] = {}
    norms: dict[str, float] = {}
    for name, weights in sorted(updates.items()):
        not_finite, norm = _looked_through(weights, model)
        if not_finite:
            faults[name] = f"{len(not_finite)} tensor(s) hold NaN or infinity, such as {not_finite[0]!r}"
        else:
            norms[name] = norm
    middle = median(norms.values()) if norms else 0.0
    if middle > 0.0:
        faults |= {
            name: f"its update's norm {norm:.4g} is {norm / middle:.1f} times the round's median, "
            f"and {max_norm_ratio:g} are allowed"
            for name, norm in norms.items()
            if not norm <= max_norm_ratio * middle
        }
    return faults


def accepted_fingerprints(others: Collection[str]) -> frozenset[str]:
    """Gives the fingerprints of the code that may take part: this installation's and the others named."""
    return frozenset({code_fingerprint(), *others})


def _looked_through(weights: SpooledWeights, model: SpooledWeights) -> tuple[list[str], float]:
    """Names of the tensors with NaN or infinity, and the norm of the update, read once."""
    not_finite: list[str] = []
    squared = 0.0
    with weights.opened() as tensor, model.opened() as of_model, np.errstate(over="ignore", invalid="ignore"):
        for name, described in weights.tensors.items():
            if not described.dtype.startswith("float"):
                continue
            array = tensor(name)
            if not np.isfinite(array).all():
                not_finite.append(name)
                continue
            difference: NDArray[np.float64] = array.astype(np.float64)
            difference -= of_model(name).astype(np.float64)
            squared += float(np.square(difference).sum())
    return not_finite, float(np.sqrt(squared))


def _fault_of_code(answer: Answer, accepted: Collection[str]) -> str | None:
    found = answer.origin.fingerprint
    if found in accepted:
        return None
    return f"runs other code (fingerprint {found[:12]}, here {code_fingerprint()[:12]}): install one version"


def by_name(answers: Mapping[str, Answer]) -> list[Answer]:
    """Gives the answers in hospital-name order, the one order in which anything is summed."""
    return [answers[name] for name in sorted(answers)]
