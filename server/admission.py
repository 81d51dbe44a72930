"""Which answers may enter the average. A refusal is a sentence that names what was found."""

from collections.abc import Mapping

import numpy as np

from aecnn.contract import HospitalCounts
from server.wire import Answer, Weights

_SHOWN = 3


def fault_of_judgement(answer: Answer, *, round_number: int, fingerprint: str, counts: HospitalCounts) -> str | None:
    """Gives why an answer's origin or its validation figures are refused, or None.

    Args:
        answer: What arrived.
        round_number: The round it must answer.
        fingerprint: The centre's code fingerprint.
        counts: What the hospital declared when it joined.
    """
    origin = answer.origin
    if origin.round != round_number:
        return f"answers round {origin.round}, and this is round {round_number}"
    if origin.fingerprint != fingerprint:
        return f"runs other code (fingerprint {origin.fingerprint[:12]}, here {fingerprint[:12]}): install one version"
    if answer.validation is None or answer.histogram is None:
        return "holds no validation sums or no histogram"
    if answer.validation.num_images > counts.num_validation_images:  # fewer: patients may withdraw during a run
        return (
            f"claims {answer.validation.num_images} validation images, and declared "
            f"{counts.num_validation_images} when it joined"
        )
    largest = answer.histogram.counts.sum(axis=(1, 2)).max()
    if largest > answer.validation.num_images:
        return f"its histogram counts {largest} images, and it has {answer.validation.num_images}"
    return None


def fault_of_update(answer: Answer, *, counts: HospitalCounts, model: Weights) -> str | None:
    """Gives why an answer's trained weights may not enter the average, or None.

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
    return _fault_of_weights(answer.weights, model)


def _fault_of_weights(weights: Weights, model: Weights) -> str | None:
    if list(weights) != list(model):
        odd = sorted(set(weights) ^ set(model))[:_SHOWN]
        return f"its tensors are not the model's; the first that differ: {', '.join(odd) or 'their order'}"
    for name, array in weights.items():
        if array.shape != model[name].shape or array.dtype != model[name].dtype:
            expected = f"{model[name].dtype} {model[name].shape}"
            return f"tensor {name!r} is {array.dtype} {array.shape}, expected {expected}"
    not_finite = [name for name, array in weights.items() if _has_non_finite(array)]
    if not_finite:
        return f"{len(not_finite)} tensor(s) hold NaN or infinity, such as {not_finite[0]!r}"
    return None


def _has_non_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all())


def by_name(answers: Mapping[str, Answer]) -> list[Answer]:
    """Gives the answers in hospital-name order, the one order in which anything is summed."""
    return [answers[name] for name in sorted(answers)]
