"""Replies that outlive a crash: kept on disk before they leave, and sent again when the same is asked again.

A hospital answers a round once. Who asks the same again gets the same bytes; who asks for something else under the
same run, kind and round gets nothing, else the difference of two answers could tell what one answer hides. Nor does
who would get other content for the same: after the policy or a list of withdrawn patients changed, or a lost file.
A reply's file is a safetensors file: each array's bytes, and in the header's metadata all else.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open

from aecnn import contract
from client.files import write_durably
from client.inventory import Inventory, digest_of, inventory_of
from client.refusal import RefusalError
from client.state import ReplyRow, RequestKey, SiteState
from client.words import stage_of

KEPT_KINDS = (contract.TRAIN, contract.EVALUATE, contract.PLACE)  # the others tell the present state, and take no time
ROUNDS_KEPT = 2
UNANSWERED = ""  # content of a reply that was not made yet, or refused
_KINDS: dict[str, type[ConfigRecord] | type[MetricRecord]] = {"config": ConfigRecord, "metric": MetricRecord}
_HEADER_KEY = "reply"


@dataclass(frozen=True)
class Kept:
    """The content of a reply, and what it holds."""

    content: RecordDict
    inventory: Inventory


@dataclass(frozen=True)
class Asked:
    """One request, and under which policy and consent lists it would be answered."""

    key: RequestKey
    request: str  # digest
    policy: str  # digest


class ReplyStore:
    """The replies this hospital gave.

    Args:
        folder: Where their files lie.
        state: Where they are noted.
    """

    def __init__(self, folder: Path, state: SiteState) -> None:
        self._folder, self._state = folder, state
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def find(self, asked: Asked) -> Kept | None:
        """Gives the content that the same request was answered with, None where it was not answered yet.

        Raises:
            RefusalError: The run, kind and round was answered, and the same bytes may not or cannot be sent again.
        """
        row = self._state.find_reply(asked.key)
        if row is None:
            return None
        if row.request != asked.request:
            raise _answered_once(asked.key, "now says something else")
        if row.policy != asked.policy:
            raise _answered_once(asked.key, "the policy or a list of withdrawn patients changed since")
        if row.content == UNANSWERED:
            return None
        if row.file is None:
            raise _answered_once(asked.key, "the answer is too old to be kept")
        return self._read(row, row.file)

    def note(self, asked: Asked) -> None:
        """Notes what is asked before it is answered: from then on the same may be asked again, and nothing else."""
        if self._state.find_reply(asked.key) is None:
            self._state.add_reply(ReplyRow(asked.key, asked.request, asked.policy, UNANSWERED, None))

    def keep(self, asked: Asked, reply: Kept) -> None:
        """Keeps a reply; it is on the disk when the call returns.

        Args:
            asked: What it answers.
            reply: The content that answers it.
        """
        key = asked.key
        name = f"{key.run_id}-{key.kind}-{key.round:06d}.safetensors"
        write_durably(self._folder / name, _packed(reply.content))
        self._state.add_reply(ReplyRow(key, asked.request, asked.policy, digest_of(reply.inventory), name))
        if key.kind != contract.PLACE:
            self._state.forget_files(
                run_id=key.run_id, before_round=key.round - ROUNDS_KEPT + 1, but_of_kind=contract.PLACE
            )
        kept = self._state.kept_files()
        for file in self._folder.iterdir():
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def _read(self, row: ReplyRow, name: str) -> Kept:
        try:
            content = _unpacked(self._folder / name)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _answered_once(row.key, f"the answer kept in {name} cannot be read ({error})") from error
        inventory = inventory_of(content)
        if digest_of(inventory) != row.content:
            raise _answered_once(row.key, f"the answer kept in {name} is not the one that was made")
        return Kept(content, inventory)


def _answered_once(key: RequestKey, why: str) -> RefusalError:
    return RefusalError(
        contract.CODE_AGAINST_POLICY,
        f"the request for {stage_of(key.kind, key.round)} of run {key.run_id} was answered, and {why}: a round is "
        "answered once. The next round is answered as usual",
    )


def _packed(content: RecordDict) -> list[bytes]:
    """The parts of a safetensors file: the arrays are written from where they lie."""
    records: dict[str, dict[str, object]] = {}
    header: dict[str, dict[str, object]] = {}
    parts: list[bytes] = []
    end = 0
    for name, record in content.items():
        if not isinstance(record, ArrayRecord):
            kind = "config" if isinstance(record, ConfigRecord) else "metric"
            records[name] = {"kind": kind, "scalars": dict(record)}
            continue
        described = {}
        for key, array in record.items():
            begin, end = end, end + len(array.data)
            header[f"{name}/{key}"] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
            described[key] = {"dtype": array.dtype, "shape": list(array.shape), "stype": array.stype}
            parts.append(array.data)
        records[name] = {"kind": "arrays", "arrays": described}
    text = json.dumps({"__metadata__": {_HEADER_KEY: json.dumps(records)}, **header}).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _unpacked(path: Path) -> RecordDict:
    content = RecordDict()
    with safe_open(path, framework="numpy") as file:
        for name, record in json.loads(file.metadata()[_HEADER_KEY]).items():
            if record["kind"] == "arrays":
                content[name] = ArrayRecord(
                    {
                        key: Array(
                            array["dtype"],
                            tuple(array["shape"]),
                            array["stype"],
                            file.get_tensor(f"{name}/{key}").tobytes(),
                        )
                        for key, array in record["arrays"].items()
                    }
                )
            else:
                content[name] = _KINDS[record["kind"]](record["scalars"])
    return content
