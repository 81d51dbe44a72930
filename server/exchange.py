"""Asking hospitals and collecting their answers over Flower's grid, each as it comes.

A hospital whose task failed, that pauses, or that vanished and is back is asked again until the deadline; it gives the
same answer to the same request. Replies are known by the message they answer, so what comes late for an earlier round
is never read. Answers are pulled one at a time and their weights go to disk: one reply is in memory, not all.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from aecnn import contract
from server.admission import Fault
from server.flower import names_of_nodes
from server.members import EnrolledHospitals
from server.spool import Spool
from server.wire import Answer, AnswerError, read_answer

POLL_INTERVAL_S = 0.2
NODES_INTERVAL_S = 1.0  # between two looks at who is online
AGAIN_AFTER_S = 2.0
LATER_AFTER_S = 30.0  # where a hospital pauses
MAX_FAILURES = 3  # times that a hospital's own code may fail at one question
MAX_LOST = 10  # times that Flower may lose one question, or the hospital's task
NODES_PATIENCE_S = 120.0  # for who is online, while the SuperLink restarts
LINK_AFTER_S = 1.0  # between two tries to reach the SuperLink
REVOKED = "its enrolment was revoked"

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Envelope:
    """What one hospital is sent."""

    kind: str  # of the contract's message types
    content: RecordDict


@dataclass
class Collected:
    """The answers to one set of questions, and what came instead of an answer."""

    answers: dict[str, Answer] = field(default_factory=dict)  # by hospital
    refused: dict[str, Fault] = field(default_factory=dict)  # by hospital
    missing: list[str] = field(default_factory=list)  # asked and not heard of by the deadline
    left: dict[str, str] = field(default_factory=dict)  # out of the run → reason


class Asking:
    """Questions under way: whom they go to, which messages carry them, who is to be asked again and when."""

    def __init__(self, *, round_number: int, deadline: float) -> None:
        self.round_number = round_number
        self.deadline = deadline  # on the monotonic clock
        self.envelopes: dict[str, Envelope] = {}
        self.due: dict[str, float] = {}
        self.sent: dict[str, str] = {}  # message → hospital; a hospital may have several, the first answer counts
        self.nodes: dict[str, int] = {}  # hospital → the node that its newest message went to
        self.away: set[str] = set()  # whose node went, with its task
        self.failures: Counter[str] = Counter()  # of the hospital's own code
        self.losses: Counter[str] = Counter()  # in Flower
        self.errors: dict[str, str] = {}  # the last, of those to be asked again

    def add(self, name: str, envelope: Envelope) -> None:
        """Adds a question."""
        self.envelopes[name] = envelope
        self.due[name] = 0.0

    def settle(self, name: str) -> None:
        """Ends a question: it is answered, or never will be."""
        self.due.pop(name, None)
        self.sent = {message: of for message, of in self.sent.items() if of != name}
        self.away.discard(name)
        del self.failures[name], self.losses[name]

    @property
    def open_names(self) -> set[str]:
        """Whom an answer is awaited from."""
        return set(self.due) | set(self.sent.values())


class Exchange:
    """The centre's end of the line: who is online, questions out and answers in."""

    def __init__(self, grid: Grid, spool: Spool, *, enrolled: EnrolledHospitals | None) -> None:
        self._grid = grid
        self._spool = spool
        self._enrolled = enrolled
        self._simulated: dict[int, str] = {}  # nodes without a registered name, by the one they gave
        self._online: dict[str, int] = {}
        self._looked_at = float("-inf")

    def name_node(self, node_id: int, name: str) -> None:
        """Remembers which hospital a simulated node is."""
        self._simulated[node_id] = name
        self._looked_at = float("-inf")

    def online(self) -> Mapping[str, int]:
        """Gives the nodes that are online by their hospital's name; ``node N`` where it is not known yet."""
        if time.monotonic() - self._looked_at >= NODES_INTERVAL_S:
            nodes = self._reached(lambda: names_of_nodes(self._grid), until=time.monotonic() + NODES_PATIENCE_S)
            if self._enrolled is None:
                self._online = {self._simulated.get(node, f"node {node}"): node for node in sorted(nodes)}
            else:
                listed = self._enrolled()
                self._online = {name: node for node, name in nodes.items() if name in listed}
            self._looked_at = time.monotonic()
        return self._online

    def ask(
        self,
        envelopes: Mapping[str, Envelope],
        *,
        round_number: int,
        timeout_s: float,
        on_answer: Callable[[Answer], None] = lambda answer: None,
        on_left: Callable[[str, str], None] = lambda hospital, reason: None,
        alongside: Callable[[], object] = lambda: None,
    ) -> Collected:
        """Asks each hospital one question and collects what comes until the deadline.

        As long as answers come they are taken: a grid in this process computes them on being asked.

        Args:
            envelopes: By hospital.
            round_number: What they are about.
            timeout_s: Seconds to wait in all.
            on_answer: Called with each answer as it comes.
            on_left: Called with who is out of the run, and why, as soon as it is known.
            alongside: Called again and again meanwhile.
        """
        asking, collected = Asking(round_number=round_number, deadline=time.monotonic() + timeout_s), Collected()
        for name, envelope in envelopes.items():
            asking.add(name, envelope)
        while asking.open_names:
            came = False
            for name, outcome in self.turn(asking):
                came = True
                self._sort(name, outcome, collected, on_answer, on_left)
            self._drop_revoked(asking, collected, on_left)
            alongside()
            if not came:
                if time.monotonic() >= asking.deadline:
                    break
                time.sleep(POLL_INTERVAL_S if asking.open_names else 0.0)
        _name_silent(asking, collected)
        return collected

    def turn(self, asking: Asking) -> Iterator[tuple[str, Answer | AnswerError]]:
        """Sends what is due, pulls what has come, and gives each question's end: an answer or why there is none."""
        online = self.online()
        for name in asking.open_names:
            if name in asking.sent.values() and online.get(name) != asking.nodes[name]:
                asking.away.add(name)  # or back already, under a new key and thereby as another node
            if name in asking.away and name in online:
                asking.due[name] = 0.0
        self._send(asking, online)
        for message_id, name in list(asking.sent.items()):
            if message_id not in asking.sent:
                continue  # another message to the hospital was answered meanwhile
            for reply in self._pulled(asking, message_id):
                outcome = self._outcome(asking, message_id, name, reply)
                if outcome is not None:
                    asking.settle(name)
                    yield name, outcome

    def _send(self, asking: Asking, online: Mapping[str, int]) -> None:
        now = time.monotonic()
        ready = [name for name, due in sorted(asking.due.items()) if due <= now and name in online]
        if not ready:
            return

        def push() -> list[str]:
            # Made anew at each try: a message that arrived in part would be taken for a repeated one.
            ttl = max(asking.deadline - time.monotonic(), 1.0)
            messages = [
                Message(
                    asking.envelopes[name].content,
                    online[name],
                    asking.envelopes[name].kind,
                    ttl=ttl,
                    group_id=str(asking.round_number),
                )
                for name in ready
            ]
            return list(self._grid.push_messages(messages))

        for name, message_id in zip(ready, self._reached(push, until=asking.deadline), strict=False):
            if not message_id:
                asking.due[name] = now + AGAIN_AFTER_S
                continue
            del asking.due[name]
            asking.away.discard(name)
            asking.sent[message_id], asking.nodes[name] = name, online[name]

    def _pulled(self, asking: Asking, message_id: str) -> Iterable[Message]:
        try:
            return list(self._grid.pull_messages([message_id]))
        except httpx.HTTPError as error:
            if not _is_passing(error) or time.monotonic() >= asking.deadline:
                raise
            log.warning("The SuperLink does not answer (%s)", type(error).__name__)
            # A reply that was being fetched is not handed out a second time.
            asking.due[asking.sent[message_id]] = time.monotonic() + AGAIN_AFTER_S
            return []

    def _outcome(self, asking: Asking, message_id: str, name: str, reply: Message) -> Answer | AnswerError | None:
        """Reads a reply; None where the hospital is to be asked again."""
        if not reply.has_error():
            try:
                return read_answer(
                    reply,
                    kind=asking.envelopes[name].kind,
                    hospital=None if name.startswith("node ") else name,
                    spool=self._spool,
                    round_number=asking.round_number,
                )
            except AnswerError as error:
                return error
        code = reply.error.code
        text = contract.CODE_TEXT.get(code, "the hospital's task or its Flower node failed")
        told = AnswerError(f"code {code}: {text}", code=code)
        asking.failures[name] += code == contract.CODE_FAILED
        asking.losses[name] += code < contract.FIRST_CODE
        again_after_s = _again_after_s(code, num_failures=asking.failures[name], num_losses=asking.losses[name])
        if again_after_s is None:
            return told
        del asking.sent[message_id]
        asking.errors[name] = str(told)
        if name not in asking.sent.values():
            asking.due[name] = time.monotonic() + again_after_s
        return None

    def _sort(
        self,
        name: str,
        outcome: Answer | AnswerError,
        collected: Collected,
        on_answer: Callable[[Answer], None],
        on_left: Callable[[str, str], None],
    ) -> None:
        if isinstance(outcome, Answer):
            collected.answers[name] = outcome
            on_answer(outcome)
        elif outcome.code == contract.CODE_WITHDRAWN:
            collected.left[name] = contract.CODE_TEXT[contract.CODE_WITHDRAWN]
            on_left(name, collected.left[name])
        else:
            collected.refused[name] = Fault(outcome.refusal, str(outcome))

    def _drop_revoked(self, asking: Asking, collected: Collected, on_left: Callable[[str, str], None]) -> None:
        if self._enrolled is None:
            return
        listed = self._enrolled()
        for name in set(asking.envelopes) - set(listed) - set(collected.left):
            asking.settle(name)
            collected.left[name] = REVOKED
            collected.answers.pop(name, None)
            collected.refused.pop(name, None)
            on_left(name, REVOKED)

    def _reached(self, call: Callable[[], Result], *, until: float) -> Result:
        """Calls the SuperLink again while it restarts.

        Raises:
            httpx.HTTPError: It does not come back in time, or refuses.
        """
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                if not _is_passing(error) or time.monotonic() >= until:
                    raise
                log.warning("The SuperLink does not answer (%s)", type(error).__name__)
                time.sleep(LINK_AFTER_S)


def _name_silent(asking: Asking, collected: Collected) -> None:
    """Names those from whom no answer came: by their last code, where they gave one."""
    for name in sorted(asking.open_names):
        if name in asking.errors:
            collected.refused[name] = Fault(0, asking.errors[name])
        else:
            collected.missing.append(name)


def _is_passing(error: httpx.HTTPError) -> bool:
    """Whether a SuperLink that restarts may have caused it; a refusal is final."""
    return (
        not isinstance(error, httpx.HTTPStatusError) or error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    )


def _again_after_s(code: int, *, num_failures: int, num_losses: int) -> float | None:
    """Gives how long to wait before a hospital that answered with a code is asked again; None: it is not."""
    if code == contract.CODE_LATER:
        return LATER_AFTER_S
    if code < contract.FIRST_CODE and num_losses <= MAX_LOST:
        return min(AGAIN_AFTER_S * (1 << (num_losses - 1)), LATER_AFTER_S)
    if code == contract.CODE_FAILED and num_failures < MAX_FAILURES:
        return AGAIN_AFTER_S
    return None
