"""What a hospital's client must not forget.

Its audit log's head, replies, pause, withdrawal and validation share, and how far the privacy ledger had come. One
SQLite file (0600). Every change is on disk before the call returns, and the worker and ``aecnn-client`` may use it at
the same time.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aecnn.contract import AuditHead
from aecnn.errors import FederationError
from client.ledger_store import LedgerMark

EVERY_RUN = "*"
_BUSY_TIMEOUT_S = 30.0
_TABLES = (  # by the version that brought them
    """
CREATE TABLE audit (id INTEGER PRIMARY KEY CHECK (id = 1), length INTEGER NOT NULL, head TEXT NOT NULL);
CREATE TABLE replies (
    run_id TEXT NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL,
    request TEXT NOT NULL, policy TEXT NOT NULL, content TEXT NOT NULL, file TEXT, created_at TEXT NOT NULL,
    PRIMARY KEY (run_id, kind, round)
);
CREATE TABLE pause (id INTEGER PRIMARY KEY CHECK (id = 1), since TEXT NOT NULL);
CREATE TABLE withdrawn (run_id TEXT PRIMARY KEY, since TEXT NOT NULL);
""",
    """
CREATE TABLE validation (id INTEGER PRIMARY KEY CHECK (id = 1), fraction REAL NOT NULL);
""",
    """
CREATE TABLE ledger_seen (
    id INTEGER PRIMARY KEY CHECK (id = 1), ledger TEXT NOT NULL, sequence INTEGER NOT NULL, mark TEXT NOT NULL
);
CREATE TABLE client (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL);
""",
)


@dataclass(frozen=True)
class RequestKey:
    """What names a request: the same one is answered once, however often it arrives."""

    run_id: str
    kind: str  # message type
    round: int


@dataclass(frozen=True)
class ReplyRow:
    """A reply that was given."""

    key: RequestKey
    request: str  # digest of what was asked
    policy: str  # digest of the policy and the consent lists under which it was made
    content: str  # digest of the reply's content
    file: str | None  # None: too old to be kept


class SiteState:
    """The client's memory.

    Args:
        database: The file; it is made, with its folder, where it is missing.

    Raises:
        FederationError: It was written by a later version.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        if not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(database, os.O_WRONLY | os.O_CREAT, 0o600))  # SQLite gives its side files the same mode
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(_TABLES):
                raise FederationError(
                    f"{database} has version {version}, this software reads {len(_TABLES)}: update it"
                )
            for statements in _TABLES[version:]:
                for statement in statements.strip().rstrip(";").split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(_TABLES)}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def audit_head(self) -> AuditHead | None:
        """Gives the recorded head of the audit log, None before its first line."""
        with self._transaction() as connection:
            row = connection.execute("SELECT length, head FROM audit").fetchone()
        return None if row is None else AuditHead(length=row[0], head=row[1])

    def set_audit_head(self, head: AuditHead | None) -> None:
        """Records the audit log's head; None before a new log."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM audit")
            if head is not None:
                connection.execute("INSERT INTO audit VALUES (1, ?, ?)", (head.length, head.head))

    def find_reply(self, key: RequestKey) -> ReplyRow | None:
        """Gives what is known of the reply to a request, None where it was never answered."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT request, policy, content, file FROM replies WHERE run_id = ? AND kind = ? AND round = ?",
                (key.run_id, key.kind, key.round),
            ).fetchone()
        return None if row is None else ReplyRow(key, *row)

    def add_reply(self, reply: ReplyRow) -> None:
        """Notes a reply, in place of an earlier one to the same request."""
        key = reply.key
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key.run_id, key.kind, key.round, reply.request, reply.policy, reply.content, reply.file, _now()),
            )

    def answered_runs(self) -> set[str]:
        """Gives the runs for which a round was ever answered: trained, or judged."""
        with self._transaction() as connection:
            return {row[0] for row in connection.execute("SELECT DISTINCT run_id FROM replies")}

    def validation_fraction(self) -> float | None:
        """Gives the share of the patients who validate here, None before the first answer."""
        with self._transaction() as connection:
            row = connection.execute("SELECT fraction FROM validation").fetchone()
        return None if row is None else float(row[0])

    def set_validation_fraction(self, fraction: float) -> None:
        """Notes the share of the patients who validate here."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO validation VALUES (1, ?)", (fraction,))

    def ledger_seen(self) -> LedgerMark | None:
        """Gives the privacy ledger that was used here last, and how far it had come; None before the first."""
        with self._transaction() as connection:
            row = connection.execute("SELECT ledger, sequence, mark FROM ledger_seen").fetchone()
        return None if row is None else LedgerMark(*row)

    def set_ledger_seen(self, mark: LedgerMark) -> None:
        """Notes it."""
        with self._transaction() as connection:
            row = (mark.ledger, mark.sequence, mark.mark)
            connection.execute("INSERT OR REPLACE INTO ledger_seen VALUES (1, ?, ?, ?)", row)

    def client_name(self) -> str:
        """Gives the name of this client in the privacy ledger: made at random, and lost with what it remembers.

        A client without memory, or a second one, must not go on under a reservation whose answer may be given already.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO client VALUES (1, ?)", (secrets.token_hex(16),))
            return str(connection.execute("SELECT name FROM client").fetchone()[0])

    def forget_files(self, *, run_id: str, before_round: int, but_of_kind: str) -> None:
        """Notes that the replies of other runs and of earlier rounds are not kept; that they were given stays known.

        Args:
            run_id: The run whose last rounds are kept.
            before_round: Its first round that is kept.
            but_of_kind: Replies to this kind of message are small, given once a run, and kept.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE replies SET file = NULL WHERE (run_id != ? OR round < ?) AND kind != ?",
                (run_id, before_round, but_of_kind),
            )

    def kept_files(self) -> set[str]:
        """Gives the names of the reply files that are kept."""
        with self._transaction() as connection:
            return {row[0] for row in connection.execute("SELECT file FROM replies WHERE file IS NOT NULL")}

    def pause(self) -> None:
        """Answers nothing from now on but "later"."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO pause VALUES (1, ?)", (_now(),))

    def unpause(self) -> None:
        """Ends the pause."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM pause")

    def paused_since(self) -> str | None:
        """Gives since when the client pauses (ISO 8601), None where it does not."""
        with self._transaction() as connection:
            row = connection.execute("SELECT since FROM pause").fetchone()
        return None if row is None else str(row[0])

    def withdraw(self, run_id: str = EVERY_RUN) -> None:
        """Takes no part in a run, or in any, from now on."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", (run_id, _now()))

    def rejoin(self, run_id: str = EVERY_RUN) -> None:
        """Undoes `withdraw` of the same run; of every run, where none is named."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM withdrawn WHERE run_id = ? OR ? = ?", (run_id, run_id, EVERY_RUN))

    def withdrawn_runs(self) -> dict[str, str]:
        """Gives since when (ISO 8601) the client has withdrawn, by run; ``*`` is every run."""
        with self._transaction() as connection:
            return dict(connection.execute("SELECT run_id, since FROM withdrawn ORDER BY since"))

    def is_withdrawn(self, run_id: str) -> bool:
        """Whether the client takes no part in a run."""
        return bool({run_id, EVERY_RUN} & set(self.withdrawn_runs()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
