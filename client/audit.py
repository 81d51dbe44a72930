"""Reading the audit log: whether it is whole, and what was answered, when and to whom, as data and in plain sentences.

A line is written before its answer goes to the SuperNode. Whether the centre fetched it then, the log does not know.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aecnn import contract
from aecnn.contract import AuditHead
from client.audit_log import BEGIN, IN, NOTE, OUT, hash_of, parsed_line
from client.words import counted, stage_of

_PROBLEMS_SHOWN = 20
_REFUSAL = re.compile(r"(refused|withheld) \(code (\d{1,9})\): (.*)", re.DOTALL)  # as `client.desk` writes it
_ASKED = {
    contract.JOIN: "to say how much this hospital holds",
    contract.TRAIN: "to train",
    contract.EVALUATE: "to judge a model",
    contract.PLACE: "for sums by patient of the released model's scores",
    contract.DELIVER: "to take the released model",
}
_ANSWERED = {
    contract.ORIGIN: "this hospital's name and code fingerprint",
    contract.AUDIT: "the head of this log",
    contract.COUNTS: "how many patients and images it holds",
    contract.REPORT: "the sums of the training",
    contract.VALIDATION: "the sums of the validation",
    contract.HISTOGRAMS: "the histogram of the validation scores",
    contract.PLACEMENTS: "sums by patient of the validation scores",
    contract.WEIGHTS: "the trained weights",
}


def verify(path: Path, head: AuditHead | None) -> list[str]:
    """Gives one sentence for every sign that the log was edited, cut, reordered or removed; none where it is whole.

    A log that is one line ahead of its head is whole: a crash leaves it so.

    Args:
        path: ``SitePaths.audit_log``.
        head: ``SiteState(paths.database).audit_head()``.
    """
    recorded = 0 if head is None else head.length
    if not path.exists():
        return [f"{path} is missing, and {_lines_recorded(recorded)}"] if recorded else []
    problems, previous, number, found = [], BEGIN, 0, None
    for number, raw in enumerate(_raw_lines(path), start=1):
        line = parsed_line(raw)
        if line is None:
            problems.append(f"line {number} is no line of this log")
            previous = ""
            continue
        problems += _problems_of(line, number, previous)
        previous = line["hash"]
        if number == recorded:
            found = line["hash"]
    if number < recorded:
        problems.append(f"the log ends after line {number}, and {_lines_recorded(recorded)}: lines were cut off")
    elif head is not None and found != head.head:
        problems.append(f"line {recorded} is not the one that was recorded")
    if number > recorded + 1:
        problems.append(f"the log has {number} lines, and {_lines_recorded(recorded)}: lines were added")
    hidden = len(problems) - _PROBLEMS_SHOWN
    return problems[:_PROBLEMS_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else [])


def entries(path: Path, *, since: str = "") -> list[dict[str, Any]]:
    """Gives every message of the log as plain data: when, which way, about what, what it held and what was decided.

    Of each record there are the scalars, or the arrays with name, shape, bytes and digest. `decision` is one of
    ``received``, ``answered``, ``resent``, ``refused``, ``withheld`` and ``note``, `code` what the centre was told.

    Args:
        path: ``SitePaths.audit_log``.
        since: The first date or time, as the log writes them (UTC, ISO 8601).
    """
    if not path.exists():
        return []
    first = since.replace(" ", "T")
    return [_entry(line) for line in _lines(path) if f"{line['time'][:19]}Z" >= first]


def sentence_of(entry: dict[str, Any]) -> str:
    """Says one of `entries` in plain words."""
    begin, kind, records = f"{entry['time'][:19]}Z  {_where(entry)}", entry["kind"], entry["records"]
    if entry["direction"] == IN:
        asked = _ASKED.get(str(kind), f"something unknown ({kind!r})")
        return f"{begin}the centre asked {asked}{_sizes(records)}"
    if entry["direction"] != OUT:
        return f"{begin}note: {entry['reason']}"
    if not records:
        return f"{begin}answered to the {entry['to']}: a code alone, {_decision_in_words(entry)}"
    told = "answered again, the same," if entry["decision"] == "resent" else "answered"
    listed = ", ".join(_ANSWERED.get(name, repr(name)) + _size(record) for name, record in records.items())
    return f"{begin}{told} to the {entry['to']}: {listed}"


def describe(path: Path) -> list[str]:
    """Gives one plain sentence for every message: what was answered, when and to whom, or refused and why."""
    return [sentence_of(entry) for entry in entries(path)]


def known_runs(path: Path) -> dict[str, str]:
    """Gives the names of the runs that ever asked something of this hospital, by run id."""
    if not path.exists():
        return {}
    return {str(line["run_id"]): str(line.get("run")) for line in _lines(path) if line.get("run_id") is not None}


def _entry(line: dict[str, Any]) -> dict[str, Any]:
    decision, direction = str(line.get("decision")), line.get("direction")
    refusal = _REFUSAL.fullmatch(decision)
    told, code, reason = (decision, None, None) if refusal is None else refusal.groups()
    if direction not in (IN, OUT):
        told, reason = NOTE, decision
    kind = line.get("kind")
    return {
        "sequence": line["number"],
        "time": line["time"],
        "direction": direction,
        "kind": kind,
        **{key: line.get(key) for key in ("run", "run_id", "round")},
        "stage": None if line.get("run") is None else stage_of(kind, line.get("round")),
        **{key: line.get(key) for key in ("from", "to")},
        "decision": told,
        "code": None if code is None else int(code),
        "reason": reason,
        "records": _records(line),
        "hash": line["hash"],
    }


def _records(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of a line; what somebody else wrote into it is none."""
    found = line.get("records")
    if not isinstance(found, dict):
        return {}
    return {name: record for name, record in found.items() if isinstance(record, dict)}


def _decision_in_words(entry: dict[str, Any]) -> str:
    if entry["code"] is None:
        return str(entry["decision"])
    return f"{entry['decision']} (code {entry['code']}): {entry['reason']}"


def _where(entry: dict[str, Any]) -> str:
    return "" if entry["run"] is None else f"run {entry['run']} ({entry['run_id']}), {entry['stage']}: "


def _sizes(records: dict[str, dict[str, Any]]) -> str:
    arrays = [array for record in records.values() for array in record.get("arrays", [])]
    return f" ({sum(array['bytes'] for array in arrays) / 1e6:.1f} MB came)" if arrays else ""


def _size(record: dict[str, Any]) -> str:
    arrays = record.get("arrays")
    if arrays is None:
        return ""
    tensors = sum(len(array.get("tensors", ())) or 1 for array in arrays)
    return f" ({counted(tensors, 'array')}, {sum(array['bytes'] for array in arrays) / 1e6:.1f} MB)"


def _lines_recorded(number: int) -> str:
    return f"{counted(number, 'line')} {'was' if number == 1 else 'were'} recorded"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for raw in _raw_lines(path):
        line = parsed_line(raw)
        if line is not None:
            yield line


def _problems_of(line: dict[str, Any], number: int, previous: str) -> list[str]:
    problems = []
    if line["hash"] != hash_of(line):
        problems.append(f"line {number} was changed")
    if line["previous"] != previous or line["number"] != number:
        problems.append(f"line {number} does not follow the line before it: lines were removed, added or moved")
    return problems


def _raw_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file
