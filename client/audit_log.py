"""The hospital's audit log: every message in and out as one JSON line that holds the hash of the line before.

The log's length and last hash are kept in the client's state and told to the centre with each answer, so that a line
that was edited, moved or cut is found. Who rewrites log and state together is found only by what the centre was told.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aecnn.contract import AuditHead
from aecnn.errors import FederationError
from client.files import sync_folder
from client.inventory import canonical
from client.state import SiteState
from client.words import counted

BEGIN = "0" * 64  # what the first line holds for the hash of the line before
IN, OUT, NOTE = "in", "out", "note"
_TAIL_BYTES = 1 << 20


class AuditError(FederationError):
    """A log that is not the one this client wrote."""


class AuditLog:
    """The log, open for writing by this one process.

    Args:
        path: The file; it is made where nothing was logged yet.
        state: Where its head is kept.

    Raises:
        AuditError: The file is not the one whose head is kept.
    """

    def __init__(self, path: Path, state: SiteState) -> None:
        self._path, self._state = path, state
        self.head = state.audit_head()
        torn = _cut_torn_line(path)
        self._adopt_last_line()
        if torn:
            self.append(
                {"direction": NOTE, "decision": f"a crash left {counted(torn, 'byte')} of an unfinished line; cut off"}
            )

    def append(self, entry: dict[str, Any]) -> AuditHead:
        """Writes one line; it is on the disk, and its hash in the state, before the call returns."""
        number, previous = (1, BEGIN) if self.head is None else (self.head.length + 1, self.head.head)
        line = {"number": number, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}
        line |= {
            "salt": secrets.token_hex(16),
            "previous": previous,
        }  # the hash is told: without, guesses could be tried
        line["hash"] = hash_of(line)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(canonical(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if number == 1:
            sync_folder(self._path.parent)
        self.head = AuditHead(length=number, head=line["hash"])
        self._state.set_audit_head(self.head)
        return self.head

    def _adopt_last_line(self) -> None:
        """A crash between a line and its head in the state leaves the file one line ahead."""
        last = _last_line(self._path)
        found = None if last is None else AuditHead(length=last["number"], head=last["hash"])
        if found == self.head:
            return
        length, head = (0, BEGIN) if self.head is None else (self.head.length, self.head.head)
        if found is None or last is None or found.length != length + 1 or last["previous"] != head:
            ends = "has no line" if found is None else f"ends with line {found.length} ({found.head[:12]})"
            raise AuditError(
                f"{self._path} {ends}, and the client's state has line {length} ({head[:12]}) as the last: nothing is "
                "answered until someone has looked at it. Restore the file, or begin a new log: aecnn-client audit "
                "--begin-anew"
            )
        self.head = found
        self._state.set_audit_head(found)


def begin_anew(path: Path, state: SiteState) -> Path | None:
    """Puts a log that does not fit its head aside and begins a new one, whose first line says so.

    Returns:
        Where the old one lies now, None where there was none.
    """
    head, aside = state.audit_head(), None
    if path.exists():
        aside = path.with_name(f"{path.stem}-until-{datetime.now(UTC):%Y%m%d-%H%M%S}{path.suffix}")
        path.rename(aside)
    state.set_audit_head(None)
    was = "no line" if head is None else f"line {head.length} ({head.head})"
    AuditLog(path, state).append({"direction": NOTE, "decision": f"a new log was begun; the state had {was} as last"})
    return aside


def hash_of(line: dict[str, Any]) -> str:
    """Gives the hash that a line must hold."""
    return hashlib.sha256(canonical({key: value for key, value in line.items() if key != "hash"})).hexdigest()


def parsed_line(raw: bytes) -> dict[str, Any] | None:
    """Gives a line that can be read, or None."""
    try:
        line = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(line, dict) and all(isinstance(line.get(key), str) for key in ("hash", "previous", "time"))
    return line if is_line and isinstance(line.get("number"), int) else None


def last_with(path: Path, key: str) -> dict[str, Any] | None:
    """Gives the last line of a log that has some key of its own, None where none has."""
    sign = f'"{key}":'.encode()
    for raw in _backwards(path) if path.exists() else ():
        line = parsed_line(raw) if sign in raw else None
        if line is not None and key in line:
            return line
    return None


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from reversed(lines)
            end = begin
        yield rest


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last line of a file that ends with one.

    Raises:
        AuditError: It is no line of a log, or was changed.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    line = parsed_line(_last_raw(path, _TAIL_BYTES))
    if line is None or line["hash"] != hash_of(line):
        raise AuditError(
            f"the last line of {path} is not one this client wrote: nothing is answered until someone has looked at "
            "it. Restore the file, or begin a new log: aecnn-client audit --begin-anew"
        )
    return line


def _last_raw(path: Path, tail: int) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - tail))
        read = file.read()
    begin = read.rstrip(b"\n").rfind(b"\n")
    return read[begin + 1 :] if begin >= 0 or tail >= size else _last_raw(path, tail * 4)


def _cut_torn_line(path: Path) -> int:
    """Cuts off what follows the last newline; gives how many bytes that was."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
    return size - end


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
