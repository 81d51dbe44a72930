"""Which answers may enter the average. A refusal is a sentence that names what was found."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from aecnn.config import Plan
from aecnn.contract import (
    REFUSED_COUNTS,
    REFUSED_FORM,
    REFUSED_NORM,
    REFUSED_ORIGIN,
    REFUSED_VALUES,
    HospitalCounts,
    code_fingerprint,
    told,
    told_names,
)
from aecnn.evaluation.histogram import ScoreHistogram
from aecnn.evaluation.placements import PlacementSums
from server.members import Enrolled
from server.privacy import fault_of_report
from server.spool import SpooledWeights
from server.wire import Answer
from server.words import counted

MIN_NORMS = 3  # that have a median which is not one of two, or between them
LARGEST_NORM = 1e15  # of an update that is clipped: its squares are numbers in single precision
_ROUNDED = 1.0 + 1e-9  # what a sum may exceed its bound by
MAX_COUNTER = 2**40  # no training counts so many batches; far from where a sum of such counters overflows


@dataclass(frozen=True)
class Fault:
    """Why an answer does not enter the average."""

    code: int  # that the hospital is told, of the contract's `REFUSAL_TEXT`; 0: it gave no update
    reason: str


@dataclass(frozen=True)
class Looked:
    """What looking through a round's updates gave, by hospital."""

    faults: dict[str, Fault]
    norms: dict[str, float]  # of those without a fault

    @property
    def median_norm(self) -> float | None:
        """Over the updates that move at all; None where none does."""
        moving = [norm for norm in self.norms.values() if norm > 0.0]
        return median(moving) if moving else None


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
    if fault is not None:
        return fault.reason
    if enrolled is None:
        return None
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
    answer: Answer, *, round_number: int, accepted: Collection[str], counts: HospitalCounts, plan: Plan, is_judged: bool
) -> Fault | None:
    """Gives why an answer's origin or its validation figures are refused, or None.

    Args:
        answer: What arrived.
        round_number: The round it must answer.
        accepted: Code fingerprints that may take part.
        counts: What the hospital declared when it joined.
        plan: The run's.
        is_judged: Whether the model that arrived was to be judged; under privacy only in some rounds.
    """
    origin = answer.origin
    if origin.round != round_number:
        return Fault(REFUSED_ORIGIN, f"answers round {origin.round}, which is not what it was asked")
    fault = _fault_of_code(answer, accepted)
    if fault is not None:
        return fault
    if plan.training.privacy is not None:
        return _fault_of_private_judgement(answer, is_judged=is_judged)
    if answer.noised is not None:
        return Fault(REFUSED_FORM, "gives noised counts, and the plan has no differential privacy")
    declared = counts.num_validation_images  # there may be fewer: patients withdraw during a run
    if answer.validation is not None and answer.validation.num_images > declared:
        claimed = answer.validation.num_images
        return Fault(REFUSED_COUNTS, f"claims {claimed} validation images, and declared {declared} when it joined")
    if answer.histogram is not None:
        largest = int(answer.histogram.counts.sum(axis=(1, 2)).max())
        held = declared if answer.validation is None else answer.validation.num_images
        if largest > held:
            return Fault(REFUSED_COUNTS, f"its histogram counts {largest} images, and it has {held}")
    return None


def fault_of_placements(
    answer: Answer,
    *,
    round_number: int,
    accepted: Collection[str],
    counts: HospitalCounts,
    histogram: ScoreHistogram,
) -> Fault | None:
    """Gives why an answer's sums of placements are refused, or None.

    Args:
        answer: What arrived.
        round_number: The round it must answer.
        accepted: Code fingerprints that may take part.
        counts: What the hospital declared when it joined.
        histogram: What it told of the same model.
    """
    if answer.origin.round != round_number:
        return Fault(REFUSED_ORIGIN, f"answers round {answer.origin.round}, which is not what it was asked")
    fault = _fault_of_code(answer, accepted)
    if fault is not None:
        return fault
    if answer.placements is None:
        return Fault(REFUSED_FORM, "holds no sums of placements")
    sums, declared = PlacementSums.of_report(answer.placements), counts.num_validation_patients
    if sums.num_patients > declared:
        return Fault(REFUSED_COUNTS, f"sums over {sums.num_patients} validation patients, and declared {declared}")
    images = np.stack([histogram.num_positive, histogram.num_negative], axis=1)
    if ((sums.patients[:, :2] > images) | ((sums.patients[:, :2] == 0) & (images > 0))).any():
        return Fault(REFUSED_COUNTS, "its numbers of patients are not those of its histogram's images")
    # A placement differs from its mean by 1 at most.
    if (sums.squares[:, :2] > images**2 * _ROUNDED).any() or sums.macro_square > 4.0 * sums.num_patients:
        return Fault(REFUSED_VALUES, "its sums of squares are larger than any placements give")
    return None


def _fault_of_private_judgement(answer: Answer, *, is_judged: bool) -> Fault | None:
    """Under privacy there are noised counts or nothing: no sums, and no check of counts, which noise moves."""
    if answer.validation is not None or answer.histogram is not None:
        return Fault(REFUSED_FORM, "gives validation figures without noise, and the plan has differential privacy")
    if answer.noised is not None and not is_judged:
        return Fault(REFUSED_FORM, "gives noised counts in a round in which the plan asks for none")
    return None


def fault_of_update(answer: Answer, *, counts: HospitalCounts, model: SpooledWeights, plan: Plan) -> Fault | None:
    """Gives why an answer's trained weights may not enter the average by their form, or None.

    Args:
        answer: What arrived.
        counts: What the hospital declared when it joined.
        plan: The run's.
        model: The global weights that were sent: the names, shapes and dtypes an update must have.
    """
    if answer.report is None or answer.weights is None:
        return Fault(REFUSED_FORM, "holds no trained weights or no report")
    claimed = answer.report.num_images
    if claimed > counts.num_train_images:
        declared = counts.num_train_images
        return Fault(REFUSED_COUNTS, f"claims {claimed} training images, and declared {declared} when it joined")
    odd_privacy = fault_of_report(answer.report, counts=counts, plan=plan)
    if odd_privacy is not None:
        return Fault(REFUSED_FORM, odd_privacy)
    found, expected = answer.weights.tensors, model.tensors
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))
        return Fault(REFUSED_FORM, f"its tensors are not the model's; these differ: {told_names(odd)}")
    for name, tensor in found.items():
        if tensor != expected[name]:
            wanted = expected[name]
            reason = f"tensor {name!r} is {tensor.dtype} {tensor.shape}, expected {wanted.dtype} {wanted.shape}"
            return Fault(REFUSED_FORM, told(reason))
    return None


def faults_of_values(
    updates: Mapping[str, SpooledWeights],
    *,
    model: SpooledWeights,
    max_norm_ratio: float | None,
    earlier_norms: Sequence[float] = (),
) -> Looked:
    """Gives why updates of the right form may not enter the average; two models in memory at most.

    An update's norm is compared with the median over the round's updates. Of fewer than three a median tells nothing
    (of two it lies between them): they are compared with the run's earlier rounds. Where there are none, as in the
    first round of two hospitals, norms are not tested. An update that moves nothing is no yardstick for the others.

    Args:
        updates: By hospital.
        model: The global weights that were sent.
        max_norm_ratio: Of an update's norm to the median; None: norms are not compared. Under central privacy they are
            clipped instead: what one hospital sends must not decide who else is averaged.
        earlier_norms: Median norms of the run's last rounds.
    """
    faults: dict[str, Fault] = {}
    norms: dict[str, float] = {}
    for name, weights in sorted(updates.items()):
        reason, norm = _looked_through(weights, model)
        if reason is None:
            norms[name] = norm
        else:
            faults[name] = Fault(REFUSED_VALUES, reason)
    moving = [norm for norm in norms.values() if norm > 0.0]
    yardstick, whose = (moving, "round's") if len(moving) >= MIN_NORMS else (earlier_norms, "earlier rounds'")
    middle = median(yardstick) if yardstick else np.inf
    allowed = LARGEST_NORM if max_norm_ratio is None else max_norm_ratio * middle
    too_far = {name: norm for name, norm in norms.items() if not norm <= allowed}
    for name, norm in too_far.items():
        reason = f"its update's norm {norm:.4g} is more than can be clipped"
        if max_norm_ratio is not None:
            reason = f"its update's norm {norm:.4g} is {norm / middle:.1f} times the {whose} median, "
            reason += f"and {max_norm_ratio:g} are allowed"
        faults[name] = Fault(REFUSED_NORM, reason)
    return Looked(faults, {name: norm for name, norm in norms.items() if name not in too_far})


def accepted_fingerprints(others: Collection[str]) -> frozenset[str]:
    """Gives the fingerprints of the code that may take part: this installation's and the others named."""
    return frozenset({code_fingerprint(), *others})


def _looked_through(weights: SpooledWeights, model: SpooledWeights) -> tuple[str | None, float]:
    """What values no training gives, and the norm of the update; each tensor is read once."""
    not_finite: list[str] = []
    out_of_range: list[str] = []
    squared = 0.0
    with weights.opened() as tensor, model.opened() as of_model, np.errstate(over="ignore", invalid="ignore"):
        for name, described in weights.tensors.items():
            array = tensor(name)
            if not described.dtype.startswith("float"):
                if array.size and not (array.min() >= 0 and array.max() <= MAX_COUNTER):
                    out_of_range.append(name)
                continue
            if not np.isfinite(array).all():
                not_finite.append(name)
                continue
            if name.endswith("running_var") and array.min(initial=0) < 0:
                out_of_range.append(name)
            difference: NDArray[np.float64] = array.astype(np.float64)
            difference -= of_model(name).astype(np.float64)
            squared += float(np.square(difference).sum())
    reason = None
    if not_finite:
        reason = f"NaN or infinity in {counted(len(not_finite), 'tensor')}, such as {not_finite[0]!r}"
    elif out_of_range:
        buffers = counted(len(out_of_range), "buffer")
        reason = f"values negative or beyond any training in {buffers}, such as {out_of_range[0]!r}"
    return reason, float(np.sqrt(squared))


def _fault_of_code(answer: Answer, accepted: Collection[str]) -> Fault | None:
    found = answer.origin.fingerprint
    if found in accepted:
        return None
    reason = f"runs other code (fingerprint {found[:12]}, here {code_fingerprint()[:12]}): install one version"
    return Fault(REFUSED_ORIGIN, reason)


def reasons_of(faults: Mapping[str, Fault]) -> dict[str, str]:
    """Gives the sentences alone, by hospital."""
    return {name: fault.reason for name, fault in sorted(faults.items())}


def by_name(answers: Mapping[str, Answer]) -> list[Answer]:
    """Gives the answers in hospital-name order, the one order in which anything is summed."""
    return [answers[name] for name in sorted(answers)]
