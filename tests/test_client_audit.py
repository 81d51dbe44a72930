"""The audit log: a line that was edited, cut, moved or added is found, and a crash is not mistaken for one."""

import json
import os
import sqlite3
from contextlib import closing

import pytest

from aecnn.contract import AuditHead
from client.audit import describe, verify
from client.audit_log import AuditError, AuditLog, begin_anew, hash_of
from client.state import SiteState


@pytest.fixture
def state(tmp_path):
    return SiteState(tmp_path / "state" / "state.sqlite")


@pytest.fixture
def path(tmp_path, state):
    """A log of six lines."""
    log = AuditLog(tmp_path / "audit.jsonl", state)
    for number in range(6):
        log.append({"direction": "in", "decision": f"text {number}"})
    return tmp_path / "audit.jsonl"


def _lines(path):
    return path.read_text().splitlines(keepends=True)


def test_an_untouched_log_is_whole_and_goes_on_after_a_restart(path, state):
    assert verify(path, state.audit_head()) == []
    head = AuditLog(path, state).append({"direction": "in", "decision": "later"})
    assert head.length == 7
    assert state.audit_head() == head
    assert verify(path, head) == []
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_the_chain_is_one_that_can_be_checked_by_hand(path):
    import hashlib

    previous = "0" * 64
    for line in map(json.loads, _lines(path)):
        own = line.pop("hash")
        assert line["previous"] == previous
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == own
        previous = own


def _edited(lines):
    lines[2] = lines[2].replace("text 2", "text 9")


def _edited_with_its_hash(lines):
    line = json.loads(lines[2]) | {"decision": "text 9"}
    line["hash"] = hash_of(line)
    lines[2] = json.dumps(line) + "\n"


def _last_one_rewritten(lines):
    line = json.loads(lines[5]) | {"decision": "text 9"}
    line["hash"] = hash_of(line)
    lines[5] = json.dumps(line) + "\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_edited, "line 3 was changed"),
        (_edited_with_its_hash, "line 4 does not follow"),
        (_last_one_rewritten, "line 6 is not the one that was recorded"),
        (lambda lines: lines.pop(2), "line 3 does not follow"),
        (lambda lines: lines.insert(2, lines.pop(3)), "line 3 does not follow"),
        (lambda lines: lines.insert(2, lines[2]), "line 4 does not follow"),
        (lambda lines: lines.pop(), "ends after line 5, and 6 lines were recorded"),
        (lambda lines: lines.clear(), "ends after line 0"),
        (lambda lines: lines.insert(3, "rubbish\n"), "line 4 is no line of this log"),
        (lambda lines: lines.insert(3, '{"a": NaN}\n'), "line 4 is no line of this log"),
        (lambda lines: lines.extend(lines[-2:]), "6 lines were recorded: lines were added"),
    ],
)
def test_every_kind_of_tampering_is_found(change, told, path, state):
    lines = _lines(path)
    change(lines)
    path.write_text("".join(lines))
    problems = verify(path, state.audit_head())
    assert any(told in problem for problem in problems), problems


def test_a_missing_log_is_found(path, state, tmp_path):
    path.unlink()
    assert "6 lines were recorded" in verify(path, state.audit_head())[0]
    with pytest.raises(AuditError, match="has no line, and the client's state has line 6"):
        AuditLog(path, state)
    assert verify(tmp_path / "never", None) == []


def test_a_crash_between_line_and_head_is_mended_at_the_next_start(path, state):
    first_five = json.loads(_lines(path)[4])
    state.set_audit_head(AuditHead(length=5, head=first_five["hash"]))
    assert verify(path, state.audit_head()) == []
    assert AuditLog(path, state).head.length == 6
    assert state.audit_head().length == 6


def test_two_lines_ahead_is_no_crash(path, state):
    state.set_audit_head(AuditHead(length=4, head=json.loads(_lines(path)[3])["hash"]))
    assert "lines were added" in verify(path, state.audit_head())[-1]
    with pytest.raises(AuditError, match="begin-anew"):
        AuditLog(path, state)


def test_a_first_line_without_a_head_is_a_crash_too(tmp_path, state):
    path = tmp_path / "audit.jsonl"
    AuditLog(path, state).append({"direction": "in", "decision": "x"})
    state.set_audit_head(None)
    assert verify(path, None) == []
    assert AuditLog(path, state).head.length == 1


@pytest.mark.parametrize("torn", ['{"number": 7, "ti', "x" * 3_000_000])
def test_a_torn_last_line_is_cut_off_and_noted(path, state, torn):
    with path.open("a") as file:
        file.write(torn)
    log = AuditLog(path, state)
    assert log.head.length == 7
    assert f"{len(torn):,} bytes of an unfinished line" in json.loads(_lines(path)[6])["decision"]
    assert verify(path, state.audit_head()) == []


def test_lines_longer_than_what_is_read_at_a_time_are_found_again(path, state):
    AuditLog(path, state).append({"direction": "in", "decision": "y" * 5_000_000})
    assert AuditLog(path, state).head.length == 7


def test_a_log_that_does_not_fit_can_be_put_aside_and_the_new_one_says_so(path, state):
    path.write_text("".join(_lines(path)[:3]))
    aside = begin_anew(path, state)
    assert len(_lines(aside)) == 3
    assert "line 6" in json.loads(_lines(path)[0])["decision"]
    assert verify(path, state.audit_head()) == []
    assert "note: a new log was begun" in describe(path)[0]


def test_a_later_version_of_the_state_is_refused(tmp_path, state):
    from aecnn.errors import FederationError

    with sqlite3.connect(tmp_path / "state" / "state.sqlite") as connection:
        connection.execute("PRAGMA user_version = 4")
    with pytest.raises(FederationError, match="version 4"):
        SiteState(tmp_path / "state" / "state.sqlite")
    assert os.stat(tmp_path / "state" / "state.sqlite").st_mode & 0o777 == 0o600


def test_a_state_of_the_first_version_is_taken_over(tmp_path):
    state = SiteState(tmp_path / "state" / "state.sqlite")
    state.withdraw("a" * 16)
    with closing(sqlite3.connect(tmp_path / "state" / "state.sqlite", isolation_level=None)) as connection:
        for table in ("validation", "ledger_seen", "client"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 1")
    again = SiteState(tmp_path / "state" / "state.sqlite")
    again.set_validation_fraction(0.1)
    assert again.validation_fraction() == 0.1
    assert again.ledger_seen() is None
    assert again.client_name() == again.client_name() != SiteState(tmp_path / "other.sqlite").client_name()
    assert again.is_withdrawn("a" * 16)
