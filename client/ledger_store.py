"""The privacy ledger's folder: one SQLite file, and the secret under which patients are known in it.

Both are readable by their owner alone, on a local disk. A patient is there as the HMAC-SHA256 of the id. A cohort is a
set of patients that something was done to, and a charge is what was done; charges are never deleted or lowered. Every
change has a number and a random mark: who remembers the last one it saw knows a ledger that was put back or replaced.
"""

import hashlib
import hmac
import os
import re
import secrets
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aecnn.enrolment import write_private
from aecnn.errors import PrivacyError
from client.files import sync_folder

VERSION = 1
_DATABASE, _SECRET = "ledger.sqlite", "secret"
_SECRET_BYTES = 32
_BUSY_TIMEOUT_S = 120.0  # another client may compute what its round would cost meanwhile
_MOUNTS = Path("/proc/self/mounts")
_OF_THE_NETWORK = re.compile(  # SQLite's locks and its shared memory do not hold there
    r"nfs\d*|cifs|smb\w*|9p|afs|ncpfs|lustre|ceph|gpfs|beegfs|glusterfs|orangefs|pvfs2|davfs|"
    r"fuse\.(sshfs|ceph|ceph-fuse|glusterfs|s3fs|gcsfuse|rclone|davfs2?|smbnetfs|mfs|juicefs)"
)
_TABLES = """
CREATE TABLE ledger (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, secret_check TEXT NOT NULL);
CREATE TABLE changes (sequence INTEGER PRIMARY KEY AUTOINCREMENT, mark TEXT NOT NULL, made_at TEXT NOT NULL);
CREATE TABLE cohorts (id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, patients INTEGER NOT NULL);
CREATE TABLE members (
    patient BLOB NOT NULL, cohort INTEGER NOT NULL REFERENCES cohorts (id), PRIMARY KEY (patient, cohort)
) WITHOUT ROWID;
CREATE INDEX members_of_cohort ON members (cohort);
CREATE TABLE charges (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cohort INTEGER NOT NULL REFERENCES cohorts (id), what TEXT NOT NULL,
    client TEXT NOT NULL, run_id TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL,
    request TEXT NOT NULL, noise_multiplier REAL NOT NULL, sample_rate REAL NOT NULL, steps INTEGER NOT NULL,
    delta REAL, epsilon REAL, run_epsilon REAL,
    content TEXT, reserved_at TEXT NOT NULL, settled_at TEXT
);
CREATE TRIGGER charges_stay BEFORE DELETE ON charges BEGIN SELECT RAISE(ABORT, 'charges are never deleted'); END;
CREATE TRIGGER members_stay BEFORE DELETE ON members BEGIN SELECT RAISE(ABORT, 'members are never deleted'); END
"""


@dataclass(frozen=True)
class LedgerMark:
    """Which ledger it was, and how far it had come."""

    ledger: str  # its name, made at random
    sequence: int
    mark: str  # of the change with this number: a ledger that was put back gives it another one

    def to_json(self) -> dict[str, str | int]:
        """Gives plain data for a line of the audit log."""
        return {"id": self.ledger, "sequence": self.sequence, "mark": self.mark}


def refuse_network_folder(folder: Path, *, mounts: str | None = None) -> None:
    """Refuses a folder on a network file system, where SQLite's locks and its order of writes do not hold.

    Args:
        folder: It need not be there yet.
        mounts: The text of ``/proc/self/mounts``; None: as it is now, and nothing is known where there is no such file.

    Raises:
        PrivacyError: It lies on one.
    """
    if mounts is None:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace") if _MOUNTS.exists() else ""
    place = Path(os.path.realpath(folder))
    found, depth = "", -1
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        mounted_at = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) or "/")
        if place.is_relative_to(mounted_at) and len(mounted_at.parts) >= depth:
            found, depth = kind, len(mounted_at.parts)
    if _OF_THE_NETWORK.fullmatch(found):
        raise PrivacyError(
            f"{folder} lies on a network file system ({found}), where two clients' changes of a privacy ledger could "
            "be lost: name a folder on a disk of this machine (policy.privacy.ledger_folder, or --ledger-folder with "
            "aecnn-client init)"
        )


def create_ledger(folder: Path) -> LedgerMark:
    """Makes an empty ledger, whole or not at all.

    Args:
        folder: What to make; it may be there, if it is empty.

    Raises:
        PrivacyError: It holds something, cannot be made, or lies on a network file system.
    """
    refuse_network_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrivacyError(f"{folder} is there and not empty: a new privacy ledger needs a folder of its own")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # 0700
    except OSError as error:
        raise PrivacyError(
            f"{folder} cannot be made ({error.strerror}): give a folder you may write to with --ledger-folder"
        ) from error
    try:
        _fill(unfinished)
        try:
            unfinished.rename(folder)
        except OSError as error:  # another client made one in this moment
            raise PrivacyError(f"{folder} cannot be made ({error.strerror}): try again") from error
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return LedgerStore(folder).mark()


def has_ledger(folder: Path) -> bool:
    """Whether there is a ledger, or what is left of one."""
    return folder.is_dir() and any((folder / name).exists() for name in (_DATABASE, _SECRET))


class LedgerStore:
    """A ledger's two files.

    Args:
        folder: Where they lie.

    Raises:
        PrivacyError: One is missing, damaged, open to other accounts, of another ledger or of a later version, or the
            folder lies on a network file system.
    """

    def __init__(self, folder: Path) -> None:
        refuse_network_folder(folder)
        self._database = folder / _DATABASE
        for path in (self._database, folder / _SECRET):
            _refuse_exposed(path)
        self._secret = (folder / _SECRET).read_bytes()
        with self.reading() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise PrivacyError(f"{self._database} has version {version}, this software reads {VERSION}: update it")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise self._damaged("its pages contradict each other")
            row = connection.execute("SELECT name, secret_check FROM ledger").fetchone()
        if row is None or not hmac.compare_digest(row[1], _secret_check(self._secret)):
            raise PrivacyError(
                f"{folder / _SECRET} is not the secret of {self._database}: nobody would be known again in the "
                "ledger, and everybody's budget would begin anew. Restore the file"
            )
        self._name = str(row[0])

    def keys_of(self, patients: Iterable[str]) -> list[bytes]:
        """Gives the patients as they are known here, each once, sorted."""
        return sorted({hmac.digest(self._secret, patient.encode(), "sha256") for patient in patients})

    def mark(self) -> LedgerMark:
        """Gives how far the ledger has come."""
        with self.reading() as connection:
            row = connection.execute("SELECT sequence, mark FROM changes ORDER BY sequence DESC LIMIT 1").fetchone()
        return LedgerMark(self._name, int(row[0]), str(row[1]))

    def holds(self, mark: LedgerMark) -> bool:
        """Whether this is the ledger that someone saw, with all that it had come to then."""
        with self.reading() as connection:
            row = connection.execute("SELECT mark FROM changes WHERE sequence = ?", (mark.sequence,)).fetchone()
        return mark.ledger == self._name and row is not None and row[0] == mark.mark

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection on which nothing changes."""
        with self._connected() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection for one change by one process: on the disk when the context ends, or not made at all."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                before = connection.total_changes
                yield connection
                if connection.total_changes > before:
                    _count_change(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(_connection(self._database)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> PrivacyError:
        return PrivacyError(
            f"{self._database} cannot be read or written ({why}): nothing is trained with differential privacy until "
            "it can. Free the disk or restore the file; an older copy is refused, for it does not hold what was spent "
            "since"
        )


def cohort_of(connection: sqlite3.Connection, keys: list[bytes]) -> int:
    """Gives the number of a set of patients, which is noted where it is new."""
    digest = hashlib.sha256(b"".join(keys)).hexdigest()
    row = connection.execute("SELECT id FROM cohorts WHERE digest = ?", (digest,)).fetchone()
    if row is not None:
        return int(row[0])
    made = connection.execute("INSERT INTO cohorts (digest, patients) VALUES (?, ?)", (digest, len(keys)))
    connection.executemany("INSERT INTO members VALUES (?, ?)", [(key, made.lastrowid) for key in keys])
    return int(made.lastrowid or 0)


def patterns(connection: sqlite3.Connection, cohorts: Iterable[int] | None = None) -> set[frozenset[int]]:
    """Gives the sets of cohorts that patients are in, each once, however many patients are in all of them.

    Args:
        connection: Of a ledger.
        cohorts: Only of the patients in any of these; None: of all.
    """
    wanted = "" if cohorts is None else _within("WHERE patient IN (SELECT patient FROM members WHERE cohort", cohorts)
    rows = connection.execute(
        "SELECT DISTINCT cohorts FROM "  # noqa: S608 -- numbers alone are put in
        f"(SELECT group_concat(cohort) AS cohorts FROM members {wanted} GROUP BY patient)"
    )
    return {frozenset(map(int, row[0].split(","))) for row in rows}


def now() -> str:
    """Gives the time as the ledger writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _within(clause: str, cohorts: Iterable[int]) -> str:
    return f"{clause} IN ({','.join(str(int(cohort)) for cohort in cohorts)}))"


def _fill(folder: Path) -> None:
    secret = secrets.token_bytes(_SECRET_BYTES)
    write_private(folder / _SECRET, secret)
    os.close(os.open(folder / _DATABASE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # and its side files alike
    with closing(_connection(folder / _DATABASE)) as connection:
        connection.executescript(f"BEGIN; {_TABLES}; PRAGMA user_version = {VERSION}; COMMIT;")
        connection.execute("INSERT INTO ledger VALUES (1, ?, ?)", (secrets.token_hex(16), _secret_check(secret)))
        _count_change(connection)
    sync_folder(folder)


def _connection(database: Path) -> sqlite3.Connection:
    uri = f"{database.absolute().as_uri()}?mode=rw"  # never makes a file
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _count_change(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO changes (mark, made_at) VALUES (?, ?)", (secrets.token_hex(8), now()))


def _secret_check(secret: bytes) -> str:
    """What tells the secret without telling any patient."""
    return hmac.new(secret, b"\0the secret of this ledger", "sha256").hexdigest()


def _refuse_exposed(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise PrivacyError(
            f"{path} cannot be read ({error.strerror}): without the privacy ledger nobody knows what was spent. "
            "Restore the folder; if it is lost for good: aecnn-client budget --adopt-ledger"
        ) from error
    if mode & 0o077:
        raise PrivacyError(f"{path} is open to other accounts (mode {mode:04o}): chmod 600 {path}")
