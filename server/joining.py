"""Who takes part: hospitals that come online are asked who they are, before the first round and beside all others."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

from aecnn.contract import JOIN, HospitalCounts
from aecnn.errors import FederationError
from server.admission import fault_of_joining
from server.central_privacy import planned_central
from server.exchange import POLL_INTERVAL_S, Asking
from server.history import Event, joined_event, start_event
from server.members import Enrolled, Member
from server.run import Run, reasons
from server.status import iso_in
from server.strategy import is_parameter
from server.wire import Answer, AnswerError
from server.words import counted

log = logging.getLogger(__name__)


class Reception:
    """Asks those who are online and no members yet.

    A hospital that may not join is asked again once it was away, or was enrolled anew with other numbers or key.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asking = Asking(round_number=0, deadline=0.0)
        self._has_started = bool(run.members)
        self.returned: set[str] = set()  # members that were asked their name again
        self.declined: dict[str, str] = {}  # hospital or node → reason
        self._declined_as: dict[str, tuple[int | None, Enrolled | None]] = {}

    @property
    def num_settled(self) -> int:
        """How many have been let in or sent away."""
        return len(self._run.arrived) + len(self.returned) + len(self.declined)

    @property
    def waiting(self) -> set[str]:
        """Whose answer is awaited."""
        return self._asking.open_names

    def turn(self, *, from_round: int) -> bool:
        """Asks newcomers, and takes what they answer; tells whether an answer came.

        Args:
            from_round: The first that they can take part in.
        """
        run = self._run
        online = run.exchange.online()
        self.declined = {
            name: reason for name, reason in self.declined.items() if self._identity(name) == self._declined_as[name]
        }
        self._asking.deadline = (
            time.monotonic() + run.settings.federation.join_timeout_s
        )  # always ahead: who comes, comes
        known = {*run.members, *run.arrived, *self.declined, *self._asking.open_names}
        for name in sorted(set(online) - known):
            self._asking.add(name, run.envelope(JOIN, 0, arrays={}))
        came = False
        for name, outcome in run.exchange.turn(self._asking):
            came = True
            self._take(name, outcome, from_round)
        return came

    def started(self) -> None:
        """From now on who comes is late, and is named in the history."""
        self._has_started = True

    def _identity(self, name: str) -> tuple[int | None, Enrolled | None]:
        """As whom a hospital is here: its node, and what it declared."""
        enrolled = None if self._run.enrolled is None else self._run.enrolled().get(name)
        return self._run.exchange.online().get(name), enrolled

    def _take(self, name: str, outcome: Answer | AnswerError, from_round: int) -> None:
        run = self._run
        fault = str(outcome) if isinstance(outcome, AnswerError) else self._fault(outcome)
        if fault is not None:
            hospital = outcome.origin.hospital if isinstance(outcome, Answer) else name
            log.warning("%s may not join: %s", hospital, fault)
            self.declined[name] = fault if hospital == name else f"{hospital}: {fault}"
            self._declined_as[name] = self._identity(name)
            return
        if not isinstance(outcome, Answer) or outcome.counts is None:
            return
        hospital = outcome.origin.hospital
        if run.enrolled is None:
            run.exchange.name_node(outcome.node_id, hospital)
        if hospital in run.members:
            self.returned.add(hospital)
            return
        run.arrived[hospital] = Member(outcome.counts)
        if self._has_started:
            run.append(joined_event(hospital, outcome.counts, from_round, is_private=run.is_private))

    def _fault(self, answer: Answer) -> str | None:
        run, hospital = self._run, answer.origin.hospital
        if run.enrolled is None:
            if hospital in run.arrived or hospital in self.returned:
                return f"a second node calls itself {hospital!r}"
            return fault_of_joining(answer, accepted=run.accepted, enrolled=None)
        enrolled = run.enrolled().get(hospital)
        if enrolled is None:
            return "is not enrolled"
        return fault_of_joining(answer, accepted=run.accepted, enrolled=enrolled)


def join(run: Run, reception: Reception, *, expected_nodes: int) -> None:
    """Waits for the hospitals; those that may not join are left out by name.

    A run that is resumed knows its members. Simulated nodes are asked again which of them they are.

    Raises:
        FederationError: Too few joined.
    """
    is_resumed = run.progress.phase != "joining"
    if is_resumed and run.enrolled is not None:
        return
    settings = run.settings.federation
    deadline = time.monotonic() + settings.join_timeout_s
    run.show(replace(run.board.status, phase="joining", deadline_at=iso_in(settings.join_timeout_s)))
    while True:
        came = reception.turn(from_round=run.progress.round_number + 1)
        joined = tuple(sorted({*run.arrived, *reception.returned}))
        asked = tuple(sorted({*joined, *reception.waiting, *reception.declined}))
        run.show(replace(run.board.status, asked=asked, answered=joined))
        run.show_online()
        if reception.num_settled >= expected_nodes and not reception.waiting:
            break
        if not came:
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_INTERVAL_S)
    if is_resumed:
        return
    _begin_rounds(run, reception)


def _begin_rounds(run: Run, reception: Reception) -> None:
    found, needed = len(run.arrived), run.settings.federation.min_hospitals
    if found < needed:
        told = "".join(f"\n  - {reason}" for reason in absent(run, reception))
        raise FederationError(f"{counted(found, 'hospital')} joined, and {needed} are needed{told}")
    counts: dict[str, HospitalCounts] = {name: member.counts for name, member in run.arrived.items()}
    planned = _planned_central(run, num_hospitals=found)
    run.append(
        start_event(
            run.settings.name,
            run.progress.run_id,
            counts,
            refused=reception.declined,
            is_private=run.is_private,
            central_privacy=planned,
        )
    )
    if planned is not None and planned["warning"]:
        log.warning("Central privacy: %s", planned["warning"])
    run.admit_arrived()
    reception.started()
    run.commit(replace(run.progress, phase="rounds"), weights=run.model.path.read_bytes())


def _planned_central(run: Run, *, num_hospitals: int) -> Event | None:
    central = run.settings.federation.central_privacy
    if central is None:
        return None
    trained = [math.prod(t.shape) for name, t in run.model.tensors.items() if is_parameter(name, t.dtype)]
    return planned_central(central, run.settings.federation, num_hospitals=num_hospitals, num_weights=sum(trained))


def wait_for_quorum(
    run: Run, reception: Reception, *, round_number: int, deadline: float, alongside: Callable[[], None]
) -> bool:
    """Waits until as many hospitals take part as a round needs; tells whether they do.

    Others can come only where hospitals are enrolled: the nodes of a simulation are all there from the start.

    Args:
        run: Its hospitals left or were revoked, so that too few may take part.
        reception: Lets in who comes.
        round_number: The round that waits.
        deadline: On the monotonic clock.
        alongside: Called again and again meanwhile.
    """
    needed = run.settings.federation.min_hospitals
    if len(run.present()) >= needed or run.enrolled is None:
        return len(run.present()) >= needed
    deadline_at = iso_in(deadline - time.monotonic())
    run.show(
        replace(run.board.status, phase="waiting", round=round_number, asked=(), answered=(), deadline_at=deadline_at)
    )
    while len(run.present()) < needed and time.monotonic() < deadline:
        alongside()
        if not reception.turn(from_round=round_number):
            time.sleep(POLL_INTERVAL_S)
        run.show_online()
        run.admit_arrived()
    return len(run.present()) >= needed


def absent(run: Run, reception: Reception) -> list[str]:
    """Gives who is enrolled and has not joined, or may not, with the reasons."""
    enrolled = set() if run.enrolled is None else set(run.enrolled())
    offline = enrolled - set(run.present()) - set(run.exchange.online())
    told = reasons(reception.declined, reception.waiting - offline, {})
    return told + [f"{name}: is not online" for name in sorted(offline)]
