"""Weights at the guard: they must be, to the byte, the safetensors file that the plan's architecture has.

Names, shapes, dtypes and order stand in the file's header, so one comparison of headers checks them all and leaves no
room for metadata or gaps between tensors. The bytes themselves are looked at once, for NaN and infinity.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from aecnn.config import ModelConfig
from aecnn.contract import CODE_WITHHELD, PACKED
from aecnn.errors import CheckpointError
from aecnn.model.joint import build_architecture
from aecnn.model.weights import faults_of, pack_weights, unpack_weights
from client.refusal import RefusalError
from client.wire import NUMPY, TensorSpan, npy_prefix, packed_bytes, tensor_spans

_FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class _File:
    """What the packed weights of one architecture must be."""

    header: bytes
    size: int
    spans: tuple[TensorSpan, ...]


def checked_weights(record: ArrayRecord, model: ModelConfig, input_size_px: int) -> ArrayRecord:
    """Gives the record anew, of the same bytes, once all of them are accounted for.

    Raises:
        RefusalError: It is anything else than the model's weights, all finite.
    """
    if list(record) != [PACKED]:
        raise _withheld(f"the record of weights holds {', '.join(map(repr, record))}")
    array, expected = record[PACKED], _expected_file(model, input_size_px)
    prefix = npy_prefix(expected.size)
    try:
        packed = packed_bytes(array)
    except CheckpointError as error:
        raise _withheld(f"the weights {'; '.join(error.faults)}") from error
    if packed[: len(expected.header)] != expected.header or len(packed) != expected.size:
        raise _withheld(_difference(packed, model, input_size_px))
    if type(array.data) is not bytes or len(array.data) != len(prefix) + expected.size:
        raise _withheld("the weights are not the npy file of their bytes")
    if not array.data.startswith(prefix):
        raise _withheld("the weights' npy header is not the usual one")
    for span in expected.spans:
        if span.dtype in _FLOATS:
            values = np.frombuffer(packed[span.start : span.end], dtype=_FLOATS[span.dtype])
            if not np.isfinite(values).all():
                raise _withheld(f"the tensor {span.name!r} holds NaN or infinity")
    return ArrayRecord({PACKED: Array("uint8", (expected.size,), NUMPY, array.data)})


@lru_cache(maxsize=4)
def _expected_file(model: ModelConfig, input_size_px: int) -> _File:
    state = _architecture(model, input_size_px).state_dict()
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype).numpy() for name, tensor in state.items()}
    packed = pack_weights(zeros).data
    spans = tensor_spans(packed)
    odd = [span.name for span in spans if span.dtype not in (*_FLOATS, "I64")]
    if odd:
        raise _withheld(f"the model has tensors of kinds the guard does not know, such as {odd[0]!r}")
    header = bytes(packed[: min(span.start for span in spans)])
    return _File(header=header, size=len(packed), spans=tuple(spans))


def _architecture(model: ModelConfig, input_size_px: int) -> torch.nn.Module:
    with torch.device("meta"):
        return build_architecture(model, input_size_px=input_size_px)


def _difference(packed: memoryview, model: ModelConfig, input_size_px: int) -> str:
    """Says for the hospital's log what is odd about weights that are already refused."""
    try:
        weights = unpack_weights(np.frombuffer(packed, dtype=np.uint8))
    except CheckpointError as error:
        return f"the weights {'; '.join(error.faults)}"
    faults = faults_of(_architecture(model, input_size_px), weights)[:_FAULTS_SHOWN]
    return "the weights do not fit: " + ("; ".join(faults) or "metadata or gaps beside the tensors")


def _withheld(reason: str) -> RefusalError:
    return RefusalError(CODE_WITHHELD, reason)
