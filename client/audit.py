"""Reading the audit log: whether it is whole, and in plain sentences what left, when and to whom."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aecnn import contract
from aecnn.contract import AuditHead
from client.audit_log import BEGIN, IN, OUT, hash_of, parsed_line

_PROBLEMS_SHOWN = 20
_ASKED = {
    contract.JOIN: "to say how much this hospital holds",
    contract.TRAIN: "to train",
    contract.EVALUATE: "to judge a model",
    contract.DELIVER: "to take the released model",
}
_LEFT = {
    contract.ORIGIN: "this hospital's name and code fingerprint",
    contract.AUDIT: "the head of this log",
    contract.COUNTS: "how many patients and images it holds",
    contract.REPORT: "the sums of the training",
    contract.VALIDATION: "the sums of the validation",
    contract.HISTOGRAMS: "the histogram of the validation scores",
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
        return [f"{path} is missing, and {recorded} lines were recorded"] if recorded else []
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
        problems.append(f"the log ends after line {number}, and {recorded} lines were recorded: lines were cut off")
    elif head is not None and found != head.head:
        problems.append(f"line {recorded} is not the one that was recorded")
    if number > recorded + 1:
        problems.append(f"the log has {number} lines, and {recorded} were recorded: lines were added")
    hidden = len(problems) - _PROBLEMS_SHOWN
    return problems[:_PROBLEMS_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else [])


def describe(path: Path) -> list[str]:
    """Gives one plain sentence for every message: what left, when and to whom, and what was withheld and why."""
    return list(_sentences(path)) if path.exists() else []


def known_runs(path: Path) -> dict[str, str]:
    """Gives the names of the runs that ever asked something of this hospital, by run id."""
    if not path.exists():
        return {}
    return {line["run_id"]: line["run"] for line in _lines(path) if line.get("run_id") is not None}


def _sentences(path: Path) -> Iterator[str]:
    for line in _lines(path):
        direction, where = line.get("direction"), _where(line)
        if direction == IN:
            asked = _ASKED.get(line.get("kind", ""), f"something unknown ({line.get('kind')!r})")
            yield f"{line['time'][:19]}Z  {where}the centre asked {asked}{_sizes(line)}"
        elif direction == OUT and line.get("records"):
            told = "was sent again" if line.get("decision") == "resent" else "left"
            listed = ", ".join(_LEFT.get(name, repr(name)) + _size(record) for name, record in line["records"].items())
            yield f"{line['time'][:19]}Z  {where}this {told} for the {line.get('to')}: {listed}"
        elif direction == OUT:
            yield f"{line['time'][:19]}Z  {where}nothing left but a code: {line.get('decision')}"
        else:
            yield f"{line['time'][:19]}Z  note: {line.get('decision')}"


def _where(line: dict[str, Any]) -> str:
    if line.get("run") is None:
        return ""
    return f"run {line['run']} ({line.get('run_id')}), round {line.get('round')}: "


def _sizes(line: dict[str, Any]) -> str:
    arrays = [array for record in line.get("records", {}).values() for array in record.get("arrays", [])]
    return f" ({sum(array['bytes'] for array in arrays) / 1e6:.1f} MB came)" if arrays else ""


def _size(record: dict[str, Any]) -> str:
    arrays = record.get("arrays")
    if arrays is None:
        return ""
    tensors = sum(len(array.get("tensors", ())) or 1 for array in arrays)
    noun = "array" if tensors == 1 else "arrays"
    return f" ({tensors} {noun}, {sum(array['bytes'] for array in arrays) / 1e6:.1f} MB)"


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
