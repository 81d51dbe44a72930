"""Requests, weights and histograms as Flower's records, and back, with as few copies of the bytes as can be.

An `Array` of Flower holds a whole npy file. Packed weights are the npy file of one uint8 [size] array, whose bytes are
a safetensors file: eight bytes with the length of a JSON header, that header, the tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from tokenize import TokenError
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from numpy.lib import format as npy
from numpy.typing import NDArray

from aecnn.contract import PACKED, REQUEST, Request
from aecnn.errors import CheckpointError, FederationError
from aecnn.model.weights import Weights, pack_weights, unpack_weights

NUMPY = "numpy.ndarray"  # how Flower calls an npy file
_LONGEST_NPY_HEADER = 1024
_LONGEST_HEADER = 100_000_000  # of a safetensors file, by its own definition
_MALFORMED = (  # what numpy's and json's readers, and ours, raise on headers made with ill will
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TokenError, TypeError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class TensorSpan:
    """Where one tensor lies in packed weights."""

    name: str
    dtype: str  # as safetensors calls it: F32, I64
    shape: tuple[int, ...]
    start: int
    end: int


def request_of(message: Message) -> Request:
    """Gives the request that a message carries.

    Raises:
        FederationError: It carries none.
        ConfigError: It breaks the contract.
    """
    record = message.content.get(REQUEST) if message.has_content() else None
    if not isinstance(record, ConfigRecord):
        raise FederationError("the message carries no request")
    return Request.from_wire(dict(record))


def to_array_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives Flower's record of named arrays; dtypes and order are kept."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def packed_record(weights: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives weights as the one array of a record."""
    packed = pack_weights(weights)
    data = b"".join((npy_prefix(packed.size), packed.data))
    return ArrayRecord({PACKED: Array("uint8", packed.shape, NUMPY, data)})


def weights_in(record: ArrayRecord) -> Weights:
    """Gives the weights packed in a record; reading never unpickles.

    Raises:
        CheckpointError: The record holds no packed weights.
    """
    if list(record) != [PACKED]:
        raise CheckpointError("the arriving weights", [f"must be the one array {PACKED!r}"])
    packed = np.frombuffer(packed_bytes(record[PACKED]), dtype=np.uint8)
    return unpack_weights(packed, subject="the arriving weights")


def bytes_in(record: ArrayRecord) -> dict[str, bytes]:
    """Gives the contents of files that came as rows of uint8, by name.

    Raises:
        CheckpointError: One is another kind of array.
    """
    return {name: bytes(packed_bytes(array)) for name, array in record.items()}


@cache
def npy_prefix(size: int) -> bytes:
    """Gives what stands before the bytes of a uint8 [size] array in its npy file."""
    buffer = BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()


def packed_bytes(array: Array) -> memoryview:
    """Gives the bytes of a uint8 [size] array where they lie, without a copy.

    Raises:
        CheckpointError: It is another kind of array.
    """
    start = BytesIO(array.data[:_LONGEST_NPY_HEADER])
    try:
        if array.stype != NUMPY or npy.read_magic(start) != (1, 0):
            raise ValueError(f"an array of kind {array.stype!r}")
        shape, _, dtype = npy.read_array_header_1_0(start)
    except _MALFORMED as error:
        raise CheckpointError("the arriving weights", [f"are no npy file of version 1 ({error})"]) from error
    if dtype != np.uint8 or shape != (len(array.data) - start.tell(),):
        raise CheckpointError("the arriving weights", [f"are {dtype} {shape}, expected one row of uint8"])
    return memoryview(array.data)[start.tell() :]


def tensor_spans(packed: memoryview) -> list[TensorSpan]:
    """Gives where the tensors of packed weights lie; metadata are left out.

    Raises:
        CheckpointError: The bytes are no safetensors file.
    """
    begin = 8 + int.from_bytes(packed[:8], "little")
    try:
        if not 8 < begin <= min(len(packed), _LONGEST_HEADER):
            raise ValueError(f"a header of {begin - 8} bytes")
        header = cast("dict[str, dict[str, list[int]]]", json.loads(bytes(packed[8:begin])))
        spans = [
            TensorSpan(
                name=name,
                dtype=str(tensor["dtype"]),
                shape=tuple(int(side) for side in tensor["shape"]),
                start=begin + int(tensor["data_offsets"][0]),
                end=begin + int(tensor["data_offsets"][1]),
            )
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except _MALFORMED as error:
        raise CheckpointError("weights", [f"are no safetensors file ({error})"]) from error
    if any(not begin <= span.start <= span.end <= len(packed) for span in spans):
        raise CheckpointError("weights", ["hold a tensor that ends outside the file"])
    return spans
