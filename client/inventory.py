"""What a message holds, as plain data for the audit log: each scalar's value, each array's and tensor's digest."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict

from aecnn import contract
from aecnn.contract import Request
from aecnn.errors import CheckpointError
from client.wire import packed_bytes, tensor_spans

Inventory = dict[str, dict[str, Any]]  # record → {"scalars": …} or {"arrays": […]}

_LONGEST_TEXT = 65_536  # characters of one scalar; longer ones are logged by their digest
_LONGEST_REASON = 2_000  # characters of a sentence in a log
_MOST_ITEMS = 20  # of a list that the centre sent, in a line of the log


def inventory_of(content: RecordDict) -> Inventory:
    """Gives what a message's content holds, by record."""
    return {
        name: {"arrays": [_of_array(key, array) for key, array in record.items()]}
        if isinstance(record, ArrayRecord)
        else {"scalars": {key: _of_scalar(value) for key, value in record.items()}}
        for name, record in content.items()
    }


def shortened(value: Any) -> Any:
    """Gives what the centre sent as a line of the log may hold it: no control characters, and no endless lists.

    The digests in it are of all that came. `_in_all` says how many there were where only the first are listed.
    """
    if isinstance(value, str):
        return _without_control(value)
    if isinstance(value, list):
        return [shortened(part) for part in value[:_MOST_ITEMS]]
    if not isinstance(value, dict):
        return value
    kept = {printable(key): shortened(part) for key, part in list(value.items())[:_MOST_ITEMS]}
    for key, part in value.items():
        if isinstance(part, list) and len(part) > _MOST_ITEMS and printable(key) in kept:
            kept[f"{printable(key)}_in_all"] = len(part)
    return kept | ({"_in_all": {"names": len(value)}} if len(value) > _MOST_ITEMS else {})


def printable(text: str) -> str:
    """Gives one line of text from outside: control characters cannot forge lines of a log, nor steer a terminal."""
    short = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
    return _without_control(short)


def digest_of(inventory: Mapping[str, Any]) -> str:
    """Gives the SHA-256 of plain data."""
    return hashlib.sha256(canonical(inventory)).hexdigest()


def canonical(document: Mapping[str, Any]) -> bytes:
    """Gives the one JSON text of plain data that is hashed."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def request_digest(request: Request, inventory: Inventory) -> str:
    """Gives the digest of all in a request that the answer depends on.

    Raises:
        ConfigError: Its plan is none that this installation knows.
    """
    arrays = {name: record for name, record in inventory.items() if name != contract.REQUEST}
    asked = {
        "run_id": request.run_id,
        "round": request.round,
        "seed": request.seed,
        "validation_fraction": request.validation_fraction,
        "plan": request.plan.model_dump(mode="json"),
    }
    return digest_of({"asked": asked, "with": arrays})


def _without_control(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _of_array(name: str, array: Array) -> dict[str, Any]:
    described = {
        "name": name,
        "dtype": array.dtype,
        "shape": list(array.shape),
        "bytes": len(array.data),
        "sha256": hashlib.sha256(array.data).hexdigest(),
    }
    tensors = _tensors(array) if name == contract.PACKED else []
    return described | ({"tensors": tensors} if tensors else {})


def _tensors(array: Array) -> list[dict[str, Any]]:
    """The tensors of packed weights; none where the array is something else."""
    try:
        packed = packed_bytes(array)
        spans = tensor_spans(packed)
    except CheckpointError:
        return []
    return [
        {
            "name": span.name,
            "dtype": span.dtype,
            "shape": list(span.shape),
            "bytes": span.end - span.start,
            "sha256": hashlib.sha256(packed[span.start : span.end]).hexdigest(),
        }
        for span in spans
    ]


def _of_scalar(value: object) -> Any:
    if isinstance(value, bytes):
        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return {"characters": len(value), "sha256": hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return [_of_scalar(part) for part in value]
    return value
