"""The hospital's privacy ledger: what every answer cost every patient, over the whole life of the data.

Adjacency: one patient, with all their radiographs, is added or removed. Each patient has the mechanisms of all cohorts
they were in, whatever the run, client or study; they compose exactly (`aecnn.training.privacy.accounting`), and the cap
is that of the patient who has spent most. Written ahead: a charge is reserved on disk before the first step, and counts
from then on. It is settled with the digest of the one answer that it paid for, before that answer is given out.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from aecnn.errors import PrivacyError
from aecnn.training.privacy.accounting import Mechanism, epsilon_of, merged
from client.ledger_store import LedgerMark, LedgerStore, cohort_of, create_ledger, now, patterns

ADJACENCY = "one patient, with all their radiographs, is added or removed"
What = Literal["train", "evaluate", "unprotected"]
TRAIN: What = "train"
EVALUATE: What = "evaluate"
UNPROTECTED: What = "unprotected"

_MOST_BY_PRV = 32  # different settings; with more the numerical composition takes minutes, and the bound by RDP counts
_COLUMNS = (
    "id, cohort, what, client, run_id, run, kind, round, request, noise_multiplier, sample_rate, steps, delta, "
    "epsilon, run_epsilon, content, reserved_at, settled_at"
)


class BudgetError(PrivacyError):
    """An answer that would take a patient beyond the cap."""


@dataclass(frozen=True)
class About:
    """Which answer of which client a charge is for."""

    client: str  # a client's own name: two of them never go on under each other's reservation
    run_id: str
    run: str
    kind: str  # message type
    round: int
    request: str  # digest of all that is asked


@dataclass(frozen=True)
class Cost:
    """What an answer does to some patients."""

    what: What
    patients: Sequence[str]
    mechanism: Mechanism


@dataclass(frozen=True)
class Limit:
    """The site file's."""

    max_epsilon: float  # of the patient who has spent most
    delta: float


@dataclass(frozen=True)
class Charge:
    """A line of the ledger."""

    number: int
    cohort: int
    what: What
    about: About
    mechanism: Mechanism
    delta: float | None  # at which the two below were taken, when it was reserved
    epsilon: float | None  # of its patient who had spent most, this and everything before it
    run_epsilon: float | None  # the same of its run alone
    content: str | None  # digest of the answer it paid for; None: reserved
    reserved_at: str
    settled_at: str | None

    @property
    def is_protected(self) -> bool:
        """Whether noise stood before what left."""
        return self.what != UNPROTECTED


@dataclass(frozen=True)
class Reservation:
    """What pays for one answer."""

    charges: tuple[int, ...]
    is_resumed: bool  # all of it was reserved before, by the same request, and no answer was kept
    epsilon: float  # of the patient of these cohorts who has spent most, this answer included


class Ledger:
    """A hospital's ledger, which several clients on one machine may use at once.

    Args:
        store: Its files.
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens a ledger that is there.

        Raises:
            PrivacyError: It is missing, damaged, or not to be trusted.
        """
        return cls(LedgerStore(folder))

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Makes an empty one.

        Raises:
            PrivacyError: The folder is in use, or no place for a ledger.
        """
        create_ledger(folder)
        return cls(LedgerStore(folder))

    def mark(self) -> LedgerMark:
        """Gives how far it has come."""
        return self._store.mark()

    def holds(self, mark: LedgerMark) -> bool:
        """Whether it is the ledger that someone saw, with everything it had then."""
        return self._store.holds(mark)

    def reserve(self, costs: Sequence[Cost], about: About, limit: Limit) -> Reservation:
        """Takes what an answer costs from its patients' budgets; on the disk when the call returns.

        The same request of the same client, to the same patients, goes on under what it reserved before, as long as
        no answer was settled with it. Whatever differs is a new charge, and the old one stays.

        Args:
            costs: All that the answer does, to cohorts that need not be disjoint.
            about: Which answer.
            limit: Cap and δ.

        Raises:
            BudgetError: A patient would be beyond the cap; nothing is written then.
        """
        with self._store.changing() as connection:
            found, numbers, cohorts = [], [], []
            for cost in costs:
                cohorts.append(cohort_of(connection, self._store.keys_of(cost.patients)))
                number = _open_charge(connection, cohorts[-1], cost, about)
                found.append(number is not None)
                numbers.append(_add(connection, cohorts[-1], cost, about) if number is None else number)
            charges = _charges(connection)
            spent = [_worst(connection, charges, limit.delta, cohorts=[cohort]) for cohort in cohorts]
            epsilon = max(spent, default=0.0)
            if epsilon > limit.max_epsilon:
                raise BudgetError(self._refusal(connection, about, limit, epsilon, set(numbers), cohorts))
            of_run = [charge for charge in charges if charge.about.run_id == about.run_id]
            for number, cohort, total, is_old in zip(numbers, cohorts, spent, found, strict=True):
                if not is_old:
                    in_run = _worst(connection, of_run, limit.delta, cohorts=[cohort])
                    connection.execute(
                        "UPDATE charges SET delta = ?, epsilon = ?, run_epsilon = ? WHERE id = ?",
                        (limit.delta, total, in_run, number),
                    )
        return Reservation(tuple(numbers), all(found), epsilon)

    def settle(self, reservation: Reservation, *, content: str) -> None:
        """Notes which answer a reservation paid for; that one may be given out when the call returns, and no other.

        Args:
            reservation: What was reserved for it.
            content: Digest of the answer.

        Raises:
            PrivacyError: It has paid for another answer, or the ledger cannot be written.
        """
        with self._store.changing() as connection:
            for number in reservation.charges:
                self._settle(connection, number, content)

    def settle_again(self, about: About, *, content: str) -> None:
        """Makes sure that an answer kept before is paid for, as where a crash came between keeping and settling.

        Raises:
            PrivacyError: Nothing in this ledger was reserved for it.
        """
        with self._store.changing() as connection:
            own = [charge for charge in _charges(connection) if charge.about == about]
            if any(charge.content == content for charge in own):
                return
            latest = {charge.what: charge.number for charge in own if charge.content is None and charge.is_protected}
            if not latest:
                raise PrivacyError(
                    f"the answer kept for round {about.round} of run {about.run} was not paid for in this privacy "
                    "ledger, so it is not sent again"
                )
            for number in latest.values():
                self._settle(connection, number, content)

    def record_unprotected(self, told_of: Sequence[Cost], about: About, *, content: str) -> None:
        """Notes, once, that an answer leaves without differential privacy; no cap counts it.

        Args:
            told_of: Whom it tells of, each `UNPROTECTED`.
            about: Which answer.
            content: Digest of the answer.
        """
        with self._store.changing() as connection:
            if any(charge.about == about and charge.content == content for charge in _charges(connection)):
                return
            for cost in told_of:
                number = _add(connection, cohort_of(connection, self._store.keys_of(cost.patients)), cost, about)
                self._settle(connection, number, content)

    def num_patients(self) -> int:
        """Gives how many patients anything was ever done to."""
        with self._store.reading() as connection:
            return int(connection.execute("SELECT count(DISTINCT patient) FROM members").fetchone()[0])

    def charges(self) -> list[Charge]:
        """Gives every line, oldest first."""
        with self._store.reading() as connection:
            return _charges(connection)

    def spent(self, *, delta: float, settled_only: bool = False) -> float:
        """Gives ε of the patient who has spent most, over the life of the data.

        Args:
            delta: δ.
            settled_only: Leave out what was reserved and not settled, though it counts.
        """
        return self._spent([charge for charge in self.charges() if charge.content or not settled_only], delta)

    def spent_of_run(self, run_id: str, *, delta: float, what: What | None = None) -> float:
        """Gives ε of the patient who has spent most in one run, by the answers of all clients.

        Args:
            run_id: The run.
            delta: δ.
            what: Only by this; None: by everything.
        """
        own = [charge for charge in self.charges() if charge.about.run_id == run_id]
        return self._spent([charge for charge in own if what in (None, charge.what)], delta)

    def _spent(self, charges: Sequence[Charge], delta: float) -> float:
        with self._store.reading() as connection:
            return _worst(connection, charges, delta)

    @staticmethod
    def _settle(connection: sqlite3.Connection, number: int, content: str) -> None:
        changed = connection.execute(
            "UPDATE charges SET content = ?, settled_at = ? WHERE id = ? AND content IS NULL", (content, now(), number)
        )
        if changed.rowcount != 1:
            raise PrivacyError(
                f"charge {number} of the privacy ledger has paid for another answer, so this one does not leave"
            )

    @staticmethod
    def _refusal(
        connection: sqlite3.Connection,
        about: About,
        limit: Limit,
        epsilon: float,
        new: set[int],
        cohorts: Sequence[int],
    ) -> str:
        before = [charge for charge in _charges(connection) if charge.number not in new]
        spent = _worst(connection, before, limit.delta, cohorts=cohorts)
        return (
            f"round {about.round} of run {about.run} would bring the patient who has spent most from ε {spent:.2f} to "
            f"{epsilon:.2f} at δ {limit.delta:.3g} ({ADJACENCY}), and policy.privacy.max_epsilon is "
            f"{limit.max_epsilon:g}: nothing was trained. aecnn-client budget shows what was spent"
        )


def epsilon_of_worst(of_patients: Iterable[Iterable[Mechanism]], *, delta: float) -> float:
    """Gives the largest ε among patients, each with the mechanisms of all that was done to them.

    The bound by RDP costs little and is never below: whoever's bound is under the largest ε found is not computed.
    """
    distinct = {merged(mechanisms) for mechanisms in of_patients}
    bounds = [(epsilon_of(own, delta=delta, accountant="rdp"), own) for own in distinct]
    worst = 0.0
    for bound, own in sorted(bounds, reverse=True):
        if bound <= worst:
            break
        worst = max(worst, bound if len(own) > _MOST_BY_PRV else epsilon_of(own, delta=delta))
    return worst


def _worst(
    connection: sqlite3.Connection, charges: Sequence[Charge], delta: float, *, cohorts: Sequence[int] | None = None
) -> float:
    """ε of the patient, of all or of some cohorts', to whom these charges cost most."""
    done: dict[int, list[Mechanism]] = {}
    for charge in charges:
        if charge.is_protected:
            done.setdefault(charge.cohort, []).append(charge.mechanism)
    charged = {pattern.intersection(done) for pattern in patterns(connection, cohorts)}
    most = [pattern for pattern in charged if not any(pattern < other for other in charged)]
    return epsilon_of_worst(
        [[mechanism for cohort in pattern for mechanism in done[cohort]] for pattern in most], delta=delta
    )


def _charges(connection: sqlite3.Connection) -> list[Charge]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM charges ORDER BY id").fetchall()  # noqa: S608 -- our columns
    return [
        Charge(row[0], row[1], row[2], About(*row[3:9]), Mechanism(row[9], row[10], row[11]), *row[12:]) for row in rows
    ]


def _open_charge(connection: sqlite3.Connection, cohort: int, cost: Cost, about: About) -> int | None:
    """The charge that the same request reserved before and no answer was settled with."""
    mechanism = cost.mechanism
    row = connection.execute(
        "SELECT id FROM charges WHERE content IS NULL AND cohort = ? AND what = ? AND client = ? AND run_id = ? "
        "AND run = ? AND kind = ? AND round = ? AND request = ? AND noise_multiplier = ? AND sample_rate = ? "
        "AND steps = ? ORDER BY id DESC",
        (cohort, cost.what, *_named(about), mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps),
    ).fetchone()
    return None if row is None else int(row[0])


def _add(connection: sqlite3.Connection, cohort: int, cost: Cost, about: About) -> int:
    mechanism = cost.mechanism
    made = connection.execute(
        "INSERT INTO charges (cohort, what, client, run_id, run, kind, round, request, noise_multiplier, sample_rate, "
        "steps, reserved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(cohort, cost.what, *_named(about)),
            *(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps, now()),
        ),
    )
    return int(made.lastrowid or 0)


def _named(about: About) -> tuple[str, str, str, str, int, str]:
    return about.client, about.run_id, about.run, about.kind, about.round, about.request
