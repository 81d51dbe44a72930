"""What a run needs to go on after a crash, in one SQLite file: one transaction for each step that is finished.

Besides the present weights it keeps the candidate for release with how it was judged, and the strategy's state, nothing
older. The history is
a file of its own; its length at each step is kept here, and what was written after it is cut off on resuming. A model
may take up to 1 GB (SQLite's limit for one value).
"""

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aecnn.contract import HospitalCounts
from aecnn.errors import ConfigError, FederationError
from server.members import Member, Members

Phase = Literal["joining", "rounds", "released", "delivering"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    run_id TEXT NOT NULL,
    phase TEXT NOT NULL,
    round INTEGER NOT NULL,
    history_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL,
    members TEXT NOT NULL,
    candidate TEXT,
    norms TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS arrays (name TEXT PRIMARY KEY, content BLOB NOT NULL);
"""
_COLUMNS = ("run_id", "phase", "round", "history_bytes", "seconds", "members", "candidate", "norms")  # of progress
_WEIGHTS, _CANDIDATE, _STRATEGY = "weights", "candidate", "strategy"
_JUDGEMENT = "judgement"


@dataclass(frozen=True)
class Candidate:
    """The model that would be released now."""

    round_number: int
    validation_macro_auroc: float | None


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    run_id: str
    phase: Phase = "joining"  # what is under way
    round_number: int = 0  # the last finished
    history_bytes: int = 0
    seconds: float = 0.0  # that the run has taken so far
    members: Members | None = None
    candidate: Candidate | None = None
    norms: tuple[float, ...] = ()  # medians over the admitted updates of the last rounds

    @property
    def joined(self) -> Members:
        """The members; none before the first step is finished."""
        return self.members or {}


class StoreError(FederationError):
    """A run that this version cannot go on with."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the run in {path.parent} cannot go on: {path.name} {why}. Begin a new run, at the centre with "
            "flower-server start --new; the old one's folder stays as it is, with its history and configuration"
        )


class RoundStore:
    """The store of one run; a context that closes it.

    Raises:
        StoreError: Another version of this software made it, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._refuse_other_version()  # before anything is changed
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
            self._database.executescript(_SCHEMA)
        except StoreError:
            self._database.close()
            raise
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise StoreError(path, f"is damaged ({error})") from error

    def __enter__(self) -> "RoundStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _refuse_other_version(self) -> None:
        found = [row[1] for row in self._database.execute("PRAGMA table_info(progress)")]
        if found and set(found) != {"only", *_COLUMNS}:
            raise StoreError(self._path, "was made by another version of this software")

    def progress(self) -> Progress | None:
        """Gives how far the run has come; None before its first commit.

        Raises:
            StoreError: Another version of this software wrote it.
        """
        row = self._database.execute(f"SELECT {', '.join(_COLUMNS)} FROM progress").fetchone()  # noqa: S608  ours
        if row is None:
            return None
        try:
            return _progress(row)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise StoreError(self._path, "was written by another version of this software") from error

    def commit(
        self,
        progress: Progress,
        *,
        weights: bytes | memoryview | None = None,
        strategy: bytes | memoryview | None = None,
        judgement: bytes | None = None,
        is_candidate_new: bool = False,
    ) -> None:
        """Keeps a finished step, all of it or nothing.

        Args:
            progress: How far the run has come with it.
            weights: The new global model; None keeps the present one.
            strategy: The strategy's new state; None keeps the present one.
            judgement: How the candidate was judged (`server.judgement`); None keeps what is there.
            is_candidate_new: The model that was present until now becomes the candidate for release.
        """
        candidate = progress.candidate
        with _transaction(self._database) as database:
            if is_candidate_new:
                database.execute(
                    "INSERT OR REPLACE INTO arrays SELECT ?, content FROM arrays WHERE name = ?", (_CANDIDATE, _WEIGHTS)
                )
            for name, content in ((_WEIGHTS, weights), (_STRATEGY, strategy), (_JUDGEMENT, judgement)):
                if content is not None:
                    database.execute("INSERT OR REPLACE INTO arrays VALUES (?, ?)", (name, content))
            database.execute(
                "INSERT OR REPLACE INTO progress VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    progress.run_id,
                    progress.phase,
                    progress.round_number,
                    progress.history_bytes,
                    progress.seconds,
                    json.dumps({name: _document(member) for name, member in progress.joined.items()}),
                    None if candidate is None else json.dumps(vars(candidate)),
                    json.dumps(progress.norms),
                ),
            )

    def weights(self) -> bytes:
        """Gives the present global model, a safetensors file."""
        content = self._array(_WEIGHTS)
        if content is None:
            raise KeyError(_WEIGHTS)
        return content

    def candidate_weights(self) -> bytes:
        """Gives the candidate for release, a safetensors file."""
        content = self._array(_CANDIDATE)
        if content is None:
            raise KeyError(_CANDIDATE)
        return content

    def strategy_state(self) -> bytes | None:
        """Gives the strategy's state, a safetensors file; None where it has none."""
        return self._array(_STRATEGY)

    def judgement(self) -> bytes | None:
        """Gives how the candidate for release was judged; None where that is not kept."""
        return self._array(_JUDGEMENT)

    def remove(self) -> None:
        """Closes the store and removes its files: the run is over."""
        self._database.close()
        for suffix in ("-wal", "-shm", ""):  # the store last: as long as it is there, the run is to be resumed
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _array(self, name: str) -> bytes | None:
        row = self._database.execute("SELECT content FROM arrays WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])


class _transaction:  # noqa: N801  read as a word of the with statement
    """All statements of a block, or none."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN IMMEDIATE")
        return self._database

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def _progress(row: tuple[Any, ...]) -> Progress:
    run_id, phase, round_number, history_bytes, seconds, members, candidate, norms = row
    return Progress(
        run_id=run_id,
        phase=phase,
        round_number=round_number,
        history_bytes=history_bytes,
        seconds=seconds,
        members={name: _member(document) for name, document in json.loads(members).items()},
        candidate=None if candidate is None else Candidate(**json.loads(candidate)),
        norms=tuple(json.loads(norms)),
    )


def _document(member: Member) -> dict[str, object]:
    return {
        "counts": member.counts.to_wire(),
        "last_refusal": member.last_refusal,
        "left": member.left,
    }


def _member(document: dict[str, object]) -> Member:
    return Member(
        counts=HospitalCounts.from_wire(document["counts"]),
        last_refusal=int(str(document["last_refusal"])),
        left=None if document["left"] is None else str(document["left"]),
    )
