"""The egress guard: what leaves a hospital is built here, from a closed list; what is not on the list does not leave.

It stands around every handler (an app-level mod, the outermost) and trusts none of them. Each record of an answer is
read, checked against `aecnn.contract` and made anew; weights must be, to the byte, the one safetensors file that the
plan's architecture has, so that no name, metadata or gap can carry anything. An error leaves as a code. Where the guard
itself fails, nothing leaves.
"""

import logging
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from aecnn import contract
from aecnn.contract import (
    HospitalCounts,
    Origin,
    PlacementReport,
    Request,
    RoundReport,
    ValidationReport,
    WireModel,
    code_fingerprint,
)
from aecnn.errors import AecnnError, ConfigError, ManifestError
from aecnn.evaluation.floored import covers_grid, patients_by_class
from aecnn.evaluation.histogram import NUM_BINS
from aecnn.evaluation.noised import NOISED_BINS
from aecnn.evaluation.placements import PlacementSums
from aecnn.findings import NUM_FINDINGS
from aecnn.training.privacy.promise import Promise
from client.deployment import deployment_of
from client.guard_weights import checked_weights
from client.inventory import printable
from client.judging import histogram_name, validation_patients, validation_targets
from client.policy import check_patients, check_validation, planned_steps, policy_of
from client.privacy import declared_counts, noised_evaluation, private_report, promise_at
from client.refusal import RefusalError, refusal
from client.site import Hospital, PolicyConfig, TrainingData, hospital_of, read_training_data
from client.wire import request_of, to_array_record

log = logging.getLogger(__name__)

Kind = TypeVar("Kind")
Scalars = TypeVar("Scalars", ConfigRecord, MetricRecord)
Sums = TypeVar("Sums", bound=WireModel)

DECISION = "decision"  # record of the context's state, which stays here: the last answer's code and reason
ANSWERED = 0
_ROUNDED = 1.0 + 1e-9  # what a sum may exceed its bound by
_OWN = (contract.ORIGIN, contract.AUDIT)  # the guard's own records: no handler has a say in them


@dataclass(frozen=True)
class _Limits:
    """What an answer to one request may say at most."""

    kind: str
    request: Request
    policy: PolicyConfig
    data: TrainingData
    promise: Promise | None  # of differential privacy
    epsilon: float | None  # of this run, by the ledger


def guard_egress(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod around every handler; the answer is the guard's own, or a code."""
    try:
        content = _leaving(message, context, call_next)
    except RefusalError as error:
        return _refused(error.code, str(error), message, context)
    except ManifestError as error:
        return _refused(contract.CODE_NO_DATA, f"the data cannot be read: {error}", message, context)
    except AecnnError as error:
        return _refused(contract.CODE_REFUSED, str(error), message, context)
    except Exception as error:
        log.exception("The guard failed")
        return _refused(contract.CODE_WITHHELD, f"the guard failed ({type(error).__name__})", message, context)
    context.state[DECISION] = ConfigRecord({"code": ANSWERED, "reason": ""})
    return Message(content, reply_to=message)


def _refused(code: int, reason: str, message: Message, context: Context) -> Message:
    log.error("Code %d (%s): %s", code, contract.CODE_TEXT[code], printable(reason))
    context.state[DECISION] = ConfigRecord({"code": code, "reason": reason})
    return refusal(code, message)


def _leaving(message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
    kind = message.metadata.message_type
    if kind not in contract.RECORDS_OF:
        raise RefusalError(contract.CODE_AGAINST_POLICY, f"messages of type {kind!r} are not answered")
    request = request_of(message)
    hospital = hospital_of(context.node_config, context.run_config)
    policy = policy_of(hospital.config.policy)
    content = _own_records(hospital, request, context)
    answer = _answer_of_handler(message, context, call_next)
    if kind == contract.DELIVER:
        _refuse_unlisted(answer, kind)
        return content
    data = read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)
    check_patients(policy, data)
    if kind in (contract.EVALUATE, contract.PLACE):
        check_validation(policy, data)
    deployment = deployment_of(context.node_config)
    epsilon = None if deployment is None else deployment.epsilon
    limits = _Limits(kind, request, policy, data, promise_at(hospital, data, request), epsilon)
    for name, record in _rebuilt(answer, limits).items():
        content[name] = record
    return content


def _answer_of_handler(message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
    try:
        reply = call_next(message, context)
    except AecnnError:
        raise
    except Exception as error:
        log.exception("The request failed")
        raise RefusalError(contract.CODE_FAILED, f"it failed ({type(error).__name__})") from error
    given, asked = reply.metadata, message.metadata
    if reply.has_error():
        known = type(reply.error.code) is int and reply.error.code in contract.CODE_TEXT
        raise RefusalError(reply.error.code if known else contract.CODE_FAILED, f"{reply.error.reason}")
    if (given.message_type, given.reply_to_message_id) != (asked.message_type, asked.message_id):
        raise _withheld("the answer is to another message")
    return reply.content


def _own_records(hospital: Hospital, request: Request, context: Context) -> RecordDict:
    origin = Origin(hospital=hospital.config.name, round=request.round, fingerprint=code_fingerprint())
    content = RecordDict({contract.ORIGIN: ConfigRecord(origin.to_wire())})
    deployment = deployment_of(context.node_config)
    if deployment is not None:
        content[contract.AUDIT] = ConfigRecord(deployment.head.to_wire())
    return content


def _refuse_unlisted(answer: RecordDict, kind: str) -> None:
    unlisted = [name for name in answer if name not in contract.RECORDS_OF[kind] or name in _OWN]
    if unlisted:
        raise _withheld(f"an answer to {kind!r} may not hold {', '.join(map(repr, unlisted))}")


def _rebuilt(answer: RecordDict, limits: _Limits) -> dict[str, ConfigRecord | MetricRecord | ArrayRecord]:
    _refuse_unlisted(answer, limits.kind)
    report, tells_validation = limits.policy.report, _tells_validation(limits)
    records: dict[str, ConfigRecord | MetricRecord | ArrayRecord] = {}
    if contract.COUNTS in answer:
        records[contract.COUNTS] = ConfigRecord(_counts(answer, limits).to_wire())
    if contract.REPORT in answer:
        records[contract.REPORT] = MetricRecord(_round_report(answer, limits).to_wire())
    if contract.VALIDATION in answer and limits.promise is not None:
        raise _withheld("validation sums under differential privacy")
    if contract.VALIDATION in answer and report.validation_sums and tells_validation:
        records[contract.VALIDATION] = MetricRecord(_validation(answer, limits).to_wire())
    if contract.HISTOGRAMS in answer and report.histograms and tells_validation:
        records[contract.HISTOGRAMS] = _histograms(answer, limits)
    if contract.PLACEMENTS in answer:
        records[contract.PLACEMENTS] = MetricRecord(_placements(answer, limits).to_wire())
    if contract.WEIGHTS in answer:
        if contract.REPORT not in answer:
            raise _withheld("weights without a report of their steps")
        plan = limits.request.plan
        weights = _record(answer, contract.WEIGHTS, ArrayRecord)
        records[contract.WEIGHTS] = checked_weights(weights, plan.model, plan.images.input_size_px)
    return records


def _tells_validation(limits: _Limits) -> bool:
    """Whether enough patients validate; a training's answer leaves without their sums otherwise."""
    try:
        check_validation(limits.policy, limits.data)
    except RefusalError as error:
        log.info("No validation sums or histograms leave: %s", error)
        return False
    return True


def _counts(answer: RecordDict, limits: _Limits) -> HospitalCounts:
    counts = _scalars(answer, contract.COUNTS, ConfigRecord, HospitalCounts)
    if limits.promise is not None:
        return _as_promised(counts, declared_counts(limits.promise), contract.COUNTS)
    data = limits.data
    _refuse_more(counts.num_train_images, data.train_rows.size, "training images")
    _refuse_more(counts.num_validation_images, data.validation_rows.size, "validation images")
    _refuse_more(counts.num_skipped_images, len(data.loaded.skipped), "skipped images")
    return counts if limits.policy.report.positives else counts.model_copy(update={"positives": None})


def _round_report(answer: RecordDict, limits: _Limits) -> RoundReport:
    report = _scalars(answer, contract.REPORT, MetricRecord, RoundReport)
    if limits.promise is not None:
        _check_steps_made(report, limits)
        return _as_promised(report, private_report(limits.promise, epsilon=limits.epsilon), contract.REPORT)
    if report.is_private:
        raise _withheld("the report tells of privacy, and the plan has none")
    _refuse_more(report.num_images, limits.data.train_rows.size, "training images")
    _refuse_more(report.num_steps, planned_steps(limits.request.plan, limits.data), "steps")
    _refuse_more(report.images_seen or 0, report.num_steps * limits.data.train_rows.size, "images seen")
    _refuse_more(report.alive_pixels or 0, report.lit_pixels or 0, "latent pixels")
    _check_steps_made(report, limits)
    if (report.images_seen or 0) < limits.policy.min_patients:
        raise _withheld(f"{report.images_seen} images were seen, policy.min_patients is {limits.policy.min_patients}")
    if limits.policy.report.training_sums:
        return report
    return report.model_copy(update=dict.fromkeys(("bce_sum", "mse_sum", "alive_pixels", "lit_pixels")))


def _check_steps_made(report: RoundReport, limits: _Limits) -> None:
    if report.num_steps < limits.policy.min_steps:
        raise _withheld(f"{report.num_steps} steps were made, policy.min_steps is {limits.policy.min_steps}")


def _as_promised(found: Sums, promised: Sums, record: str) -> Sums:
    """Under privacy a record says what was promised beforehand, to the last digit, and nothing of the data."""
    if found != promised:
        raise _withheld(f"the record {record!r} says more or other than differential privacy allows")
    return promised


def _validation(answer: RecordDict, limits: _Limits) -> ValidationReport:
    sums = _scalars(answer, contract.VALIDATION, MetricRecord, ValidationReport)
    _refuse_more(sums.num_images, limits.data.validation_rows.size, "validation images")
    return sums


def _histograms(answer: RecordDict, limits: _Limits) -> ArrayRecord:
    record = _record(answer, contract.HISTOGRAMS, ArrayRecord)
    is_private = limits.promise is not None
    if is_private and noised_evaluation(limits.request, limits.kind) is None:
        raise _withheld("a histogram in an answer that has none under differential privacy")
    name = contract.NOISED_COUNTS if is_private else histogram_name(limits.policy)
    if list(record) != [name]:
        raise _withheld(f"the record of histograms holds {', '.join(map(repr, record))}, expected {name!r}")
    counts, wanted = record[name].numpy(), (NUM_FINDINGS, 2, NOISED_BINS if is_private else NUM_BINS)
    dtype = np.dtype(np.int64 if is_private else np.int32)
    if counts.shape != wanted or counts.dtype != dtype:
        raise _withheld(f"the histogram is {counts.dtype} {counts.shape}, expected {dtype} {wanted}")
    return to_array_record({name: np.array(counts if is_private else _told_counts(counts, limits), order="C")})


def _told_counts(counts: NDArray[np.int32], limits: _Limits) -> NDArray[np.int32]:
    """The counts of findings that pass the floor of patients; those of the others are 0."""
    policy, targets = limits.policy, validation_targets(limits.data, limits.policy)
    if (counts < 0).any():
        raise _withheld("the histogram has negative counts")
    largest = int(counts.sum(axis=(1, 2), dtype=np.int64).max())
    _refuse_more(largest, limits.data.validation_rows.size, "images in the histogram of a finding")
    told = np.asarray(~np.isnan(targets).all(axis=0))
    counts = np.where(told[:, None, None], counts, np.int32(0))
    most = np.stack([(targets == true_class).sum(axis=0) for true_class in (0, 1)], axis=1)
    found = counts.sum(axis=-1, dtype=np.int64)
    for finding, true_class in np.ndindex(*found.shape):
        what = f"images of class {true_class} in the histogram of finding {finding}"
        _refuse_more(int(found[finding, true_class]), int(most[finding, true_class]), what)
    if policy.report.histogram_mode == "floored":
        smallest = counts[counts > 0].min(initial=policy.min_patients)
        if smallest < policy.min_patients or not covers_grid(counts.astype(np.int64)):
            raise _withheld(f"the floored histogram has a range of {smallest} images, or ranges that leave gaps")
    return counts


def _placements(answer: RecordDict, limits: _Limits) -> PlacementReport:
    """Sums over the validation patients: of findings that pass their floor, and over no other number of them."""
    report = _scalars(answer, contract.PLACEMENTS, MetricRecord, PlacementReport)
    if limits.promise is not None:
        raise _withheld("sums by patient under differential privacy")
    targets, patients = validation_targets(limits.data, limits.policy), validation_patients(limits.data)
    held, told = patients_by_class(targets, patients), np.asarray(~np.isnan(targets)).T
    if report.negative_patients != held[:, 0].tolist() or report.positive_patients != held[:, 1].tolist():
        raise _withheld("the sums by patient are over other numbers of patients than may be told of")
    either = np.array([len({patients[row] for row in np.flatnonzero(rows)}) for rows in told])
    both = held.sum(axis=1) - either
    hidden = (both > 0) & (both < limits.policy.min_patients)
    wanted = np.where(hidden, np.minimum(held.sum(axis=1), report.num_patients), either)
    if report.patients != wanted.tolist() or np.array(report.products)[hidden].any():
        raise _withheld("the sums by patient tell of fewer patients than the floor who have images of both classes")
    _refuse_more(report.num_patients, len(set(patients)), "validation patients")
    for sums, true_class in ((report.negative_squares, 0), (report.positive_squares, 1)):
        images = (targets == true_class).sum(axis=0)
        if (np.array(sums) > images.astype(np.float64) ** 2 * _ROUNDED).any():
            raise _withheld("the sums by patient are larger than any placements give")
    if report.macro_square > 4.0 * report.num_patients:  # a patient's mean influence is 2 at most
        raise _withheld("the sum of the macro mean is larger than any placements give")
    return PlacementSums.of_report(report).told(min_patients=limits.policy.min_patients).to_report()


def _scalars(answer: RecordDict, name: str, kind: type[Scalars], model: type[Sums]) -> Sums:
    try:
        return model.from_wire(dict(_record(answer, name, kind)))
    except ConfigError as error:
        raise _withheld(f"the record {name!r}: {'; '.join(error.faults)}") from error


def _record(answer: RecordDict, name: str, kind: type[Kind]) -> Kind:
    record = answer[name]
    if not isinstance(record, kind):
        raise _withheld(f"the record {name!r} is a {type(record).__name__}, expected {kind.__name__}")
    return record


def _refuse_more(found: int, most: int, what: str) -> None:
    if found > most:
        raise _withheld(f"the answer tells of {found} {what}, and there are {most}")


def _withheld(reason: str) -> RefusalError:
    return RefusalError(contract.CODE_WITHHELD, reason)
