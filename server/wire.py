"""The centre's half of the messages: requests out, answers in, each checked against the contract."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from aecnn import contract
from aecnn.contract import HospitalCounts, Origin, Request, RoundReport, ValidationReport, WireModel
from aecnn.errors import AecnnError, CheckpointError, ConfigError
from aecnn.evaluation.histogram import NUM_BINS, ScoreHistogram
from aecnn.findings import NUM_FINDINGS
from aecnn.model.weights import pack_weights, unpack_weights

Weights = Mapping[str, NDArray[np.generic]]
Record = TypeVar("Record", bound=WireModel)


class AnswerError(AecnnError):
    """An answer that breaks the contract; the text names what."""


@dataclass(frozen=True)
class Answer:
    """One hospital's answer, with the parts it holds."""

    node_id: int
    origin: Origin
    counts: HospitalCounts | None
    report: RoundReport | None
    validation: ValidationReport | None
    histogram: ScoreHistogram | None
    weights: Weights | None


def request_content(request: Request, weights: Weights | None) -> RecordDict:
    """Gives a message's content: the request, and the global weights where there are some to send."""
    content = RecordDict({contract.REQUEST: ConfigRecord(request.to_wire())})
    if weights is not None:
        content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(pack_weights(weights))})
    return content


def read_answer(reply: Message) -> Answer:
    """Reads a reply.

    Raises:
        AnswerError: It carries an error code, lacks a part or breaks the contract.
    """
    if reply.has_error():
        text = contract.CODE_TEXT.get(reply.error.code, "the hospital's Flower node reported an error")
        raise AnswerError(f"code {reply.error.code}: {text}")
    content = reply.content
    origin = _scalars(content, contract.ORIGIN, Origin)
    if origin is None:
        raise AnswerError("the answer does not say which hospital it comes from")
    weights = content.get(contract.WEIGHTS)
    if weights is not None and not isinstance(weights, ArrayRecord):
        raise AnswerError("the record 'weights' holds no arrays")
    return Answer(
        node_id=reply.metadata.src_node_id,
        origin=origin,
        counts=_scalars(content, contract.COUNTS, HospitalCounts),
        report=_scalars(content, contract.REPORT, RoundReport),
        validation=_scalars(content, contract.VALIDATION, ValidationReport),
        histogram=_histogram(content),
        weights=None if weights is None else _unpacked(weights),
    )


def _unpacked(record: ArrayRecord) -> Weights:
    if list(record) != [contract.PACKED]:
        raise AnswerError(f"the record 'weights' must hold the one array {contract.PACKED!r}")
    try:
        return unpack_weights(record[contract.PACKED].numpy())
    except CheckpointError as error:
        raise AnswerError(f"its weights cannot be read: {'; '.join(error.faults)}") from error


def _scalars(content: RecordDict, key: str, kind: type[Record]) -> Record | None:
    record = content.get(key)
    if record is None:
        return None
    if not isinstance(record, ConfigRecord | MetricRecord):
        raise AnswerError(f"the record {key!r} holds no scalars")
    try:
        return kind.from_wire(dict(record))
    except ConfigError as error:
        raise AnswerError(f"the record {key!r} breaks the contract: {'; '.join(error.faults)}") from error


def _histogram(content: RecordDict) -> ScoreHistogram | None:
    record = content.get(contract.HISTOGRAMS)
    if record is None:
        return None
    if not isinstance(record, ArrayRecord) or list(record) != [contract.SCORE_COUNTS]:
        raise AnswerError(f"the record 'histograms' must hold the one array {contract.SCORE_COUNTS!r}")
    counts = record[contract.SCORE_COUNTS].numpy()
    wanted = (NUM_FINDINGS, 2, NUM_BINS)
    if counts.shape != wanted or counts.dtype != np.int64 or (counts < 0).any():
        raise AnswerError(f"the histogram must be counts of int64 {wanted}, found {counts.dtype} {counts.shape}")
    return ScoreHistogram(counts)
