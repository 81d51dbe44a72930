"""The centre's half of the messages: requests out, answers in, each checked against the contract."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
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
)
from aecnn.errors import AecnnError, ConfigError
from aecnn.evaluation.floored import covers_grid
from aecnn.evaluation.histogram import NUM_BINS, ScoreHistogram
from aecnn.evaluation.noised import NOISED_BINS
from aecnn.findings import NUM_FINDINGS
from server.spool import Spool, SpooledWeights, SpoolError

Counts = NDArray[np.int64]  # [14, 2, bins]
Record = TypeVar("Record", bound=WireModel)
NPY_VERSION = (1, 0)
MAX_SECONDS = 366 * 86400.0  # of one training: no round takes a year
MAX_NOISED = 2**40  # of a noised count, either way; far from where a sum over hospitals overflows
MAX_SUM = 1e15  # of losses over the images of one training; a mean that long fits no table


class AnswerError(AecnnError):
    """An answer that breaks the contract, or a code instead of one; the text names what, and is shortened."""

    def __init__(self, text: str, *, code: int | None = None, refusal: int = contract.REFUSED_FORM) -> None:
        self.code = code  # the hospital's, or Flower's
        self.refusal = refusal if code is None else 0  # of the contract's `REFUSAL_TEXT`
        super().__init__(contract.told(text))


@dataclass(frozen=True)
class Answer:
    """One hospital's answer, with the parts it holds; a hospital may keep all but its origin to itself."""

    node_id: int
    origin: Origin
    counts: HospitalCounts | None
    report: RoundReport | None
    validation: ValidationReport | None
    histogram: ScoreHistogram | None  # of exact counts, fine or floored
    noised: Counts | None  # under differential privacy: [14, 2, NOISED_BINS] with noise, negative ones among them
    weights: SpooledWeights | None
    placements: PlacementReport | None = None


def bytes_record(contents: Mapping[str, bytes]) -> ArrayRecord:
    """Gives bytes by name as a record of arrays."""
    return ArrayRecord({name: Array(np.frombuffer(content, dtype=np.uint8)) for name, content in contents.items()})


def arrays_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives arrays by name as a record."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def request_content(request: Request, arrays: Mapping[str, ArrayRecord]) -> RecordDict:
    """Gives a message's content: the request, and records of arrays by their names in the contract."""
    return RecordDict({contract.REQUEST: ConfigRecord(request.to_wire()), **arrays})


def read_answer(reply: Message, *, kind: str, hospital: str | None, spool: Spool, round_number: int) -> Answer:
    """Reads a reply that carries no error; its weights go to the spool.

    Args:
        reply: What arrived.
        kind: The type of the message it answers.
        hospital: Whose answer it must be; None where that is not known yet.
        spool: Where weights go.
        round_number: The round it answers.

    Raises:
        AnswerError: It comes from another hospital, lacks a part, or breaks the contract.
    """
    content = reply.content
    unasked = sorted(set(content) - set(contract.RECORDS_OF[kind]))
    if unasked:
        raise AnswerError(f"the answer holds what was not asked for: {contract.told_names(unasked)}")
    origin = _scalars(content, contract.ORIGIN, Origin)
    if origin is None:
        raise AnswerError("the answer does not say which hospital it comes from")
    if hospital is not None and origin.hospital != hospital:
        raise AnswerError(f"now calls itself {origin.hospital!r}", refusal=contract.REFUSED_ORIGIN)
    histogram, noised = _histograms(content)
    return Answer(
        node_id=reply.metadata.src_node_id,
        origin=origin,
        counts=_scalars(content, contract.COUNTS, HospitalCounts),
        report=_scalars(content, contract.REPORT, RoundReport),
        validation=_scalars(content, contract.VALIDATION, ValidationReport),
        histogram=histogram,
        noised=noised,
        weights=_spooled(content, origin.hospital, spool, round_number),
        placements=_scalars(content, contract.PLACEMENTS, PlacementReport),
    )


def _spooled(content: RecordDict, hospital: str, spool: Spool, round_number: int) -> SpooledWeights | None:
    array = _only_array(content, contract.WEIGHTS, contract.PACKED)
    if array is None:
        return None
    packed = _bytes_of(array, contract.WEIGHTS, dtype="uint8")
    try:
        return spool.put(hospital, packed, round_number=round_number)
    except SpoolError as error:
        raise AnswerError(str(error)) from error


def _histograms(content: RecordDict) -> tuple[ScoreHistogram | None, Counts | None]:
    """The histogram of exact counts or the one with noise, of which an answer holds at most one."""
    record = content.get(contract.HISTOGRAMS)
    if isinstance(record, ArrayRecord) and contract.NOISED_COUNTS in record:
        noised = _counts(content, contract.NOISED_COUNTS, num_bins=NOISED_BINS, dtype="int64")
        if noised is not None and ((noised < -MAX_NOISED) | (noised > MAX_NOISED)).any():
            raise AnswerError("the noised histogram holds counts beyond any noise")
        return None, noised
    is_floored = isinstance(record, ArrayRecord) and contract.FLOORED_COUNTS in record
    name = contract.FLOORED_COUNTS if is_floored else contract.SCORE_COUNTS
    counts = _counts(content, name, num_bins=NUM_BINS, dtype="int32")
    if counts is None:
        return None, None
    if (counts < 0).any():
        raise AnswerError("the histogram holds negative counts")
    if is_floored and not covers_grid(counts):
        raise AnswerError("the floored histogram has ranges that do not cover the grid")
    return ScoreHistogram(counts, is_floored=is_floored), None


def _counts(content: RecordDict, name: str, *, num_bins: int, dtype: str) -> Counts | None:
    array = _only_array(content, contract.HISTOGRAMS, name)
    if array is None:
        return None
    wanted = (NUM_FINDINGS, 2, num_bins)
    data = _bytes_of(array, contract.HISTOGRAMS, dtype=dtype, shape=wanted)
    return np.frombuffer(data, dtype=dtype).reshape(wanted).astype(np.int64)


def _only_array(content: RecordDict, key: str, name: str) -> Array | None:
    record = content.get(key)
    if record is None:
        return None
    if not isinstance(record, ArrayRecord) or list(record) != [name]:
        raise AnswerError(f"the record {key!r} must hold the one array {name!r}")
    return record[name]


def _bytes_of(array: Array, key: str, *, dtype: str, shape: tuple[int, ...] | None = None) -> memoryview:
    """Gives an array's values without a copy, and without trusting what its header says of their number."""
    data = memoryview(array.data)
    stream = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != NPY_VERSION:
            raise ValueError("another version of the format")
        found_shape, is_fortran, found_dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError, EOFError, RecursionError, MemoryError) as error:  # a header is parsed as Python
        raise AnswerError(f"the array in {key!r} cannot be read ({error})") from error
    values = data[stream.tell() :]
    expected = (len(values),) if shape is None else shape
    if str(found_dtype) != dtype or found_shape != expected or (is_fortran and len(expected) > 1):
        raise AnswerError(f"the array in {key!r} must be {dtype} {expected}, found {found_dtype} {found_shape}")
    if len(values) != int(np.prod(expected, dtype=np.int64)) * np.dtype(dtype).itemsize:
        raise AnswerError(f"the array in {key!r} is cut off: {len(values)} bytes for {dtype} {expected}")
    return values


def _scalars(content: RecordDict, key: str, kind: type[Record]) -> Record | None:
    record = content.get(key)
    if record is None:
        return None
    if not isinstance(record, ConfigRecord | MetricRecord):
        raise AnswerError(f"the record {key!r} holds no scalars")
    try:
        found = kind.from_wire(dict(record))
    except ConfigError as error:
        raise AnswerError(f"the record {key!r} breaks the contract: {'; '.join(error.faults)}") from error
    for name, value in found.to_wire().items():
        largest = MAX_SECONDS if name == "seconds" else MAX_SUM
        if isinstance(value, float) and value > largest:
            raise AnswerError(f"the record {key!r} says {value:.3g} {name}, and {largest:.3g} are believed")
    return found
