"""What a person at the terminal, or a service's journal, sees of a running client."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aecnn import contract
from client.log_lines import say_line
from client.node_log import NodeState
from client.words import stage_of

REFUSED_FOR_LONG_S = 120.0  # after a crash the centre holds the old connection for about 90 s
SENTENCES: dict[NodeState, str] = {
    "starting": "the SuperNode starts",
    "connected": "connected to the centre",
    "unreachable": "the centre does not answer: trying until it does",
    "refused": "the centre does not let this hospital in: its key is not enrolled or may have been revoked; or centre "
    "or client started or crashed just now, then it takes a minute or two. Trying again",
    "ended": "the SuperNode ended and is started again",
}
WHEN_REFUSED = (
    "if it stays so, ask the centre. A key that is not enrolled: send enrolment-request.json. A revoked one: "
    "aecnn-client stop, aecnn-client rotate-key, and send the new request. An enrolled one: this machine's clock is "
    "wrong by more than five minutes"
)
_NO_ANSWER_AFTER_A_RUN = "the centre does not answer, as is usual after a run: waiting for the next run"


class Display:
    """A line for every change, and at a terminal a bar for the steps of a round.

    Args:
        console: Where to.
        connection: Tells how the SuperNode stands with the centre.
        work: Gives what the worker wrote last, None before it wrote anything.
        clock: Seconds.
    """

    def __init__(
        self,
        console: Console,
        *,
        connection: Callable[[], NodeState],
        work: Callable[[], dict[str, Any] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._connection, self._work, self._clock = console, connection, work, clock
        self._told: dict[str, str] = {}
        self._refused_since: float | None = None
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._progress.add_task("", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self) -> NodeState:
        """Shows what changed since the last time; gives how the SuperNode stands."""
        connection, work = self._connection(), self._work() or {}
        if work:
            self._tell("work", sentence_of_work(work))
        self._tell("connection", self._sentence_of(connection, work))
        self._progress.update(
            self._bar,
            description=f"round {work.get('round', '')}",
            completed=work.get("steps_done", 0),
            total=work.get("steps"),
            visible="steps" in work,
        )
        return connection

    def _sentence_of(self, connection: NodeState, work: dict[str, Any]) -> str:
        if connection in ("connected", "unreachable"):
            self._refused_since = None
        elif connection == "refused" and self._refused_since is None:
            self._refused_since = self._clock()
        if self._refused_since is not None:  # meanwhile the SuperNode ends and starts, again and again
            is_long = self._clock() - self._refused_since > REFUSED_FOR_LONG_S
            return f"{SENTENCES['refused']}; {WHEN_REFUSED}" if is_long else SENTENCES["refused"]
        if connection == "unreachable" and work.get("completed"):
            return _NO_ANSWER_AFTER_A_RUN
        return SENTENCES[connection]

    def _tell(self, about: str, sentence: str) -> None:
        if self._told.get(about) != sentence:
            self._told[about] = sentence
            say_line(self._console, sentence)


def sentence_of_work(work: dict[str, Any]) -> str:
    """Says in words what the worker does, without the steps, which change every second."""
    phase, completed = str(work.get("phase", "idle")), work.get("completed")
    if "run" not in work:
        if completed is None:
            return "waiting for the centre's next message" if phase == "idle" else f"the worker is {phase}"
        models = completed["models"]
        kept = "its files are not kept here" if models is None else f"the released model is in {models}"
        return f"run {completed['run']} is complete; {kept}: waiting for the next run"
    run, kind = f"run {work['run']}, {stage_of(work.get('kind'), work['round'])}", work.get("kind")
    if kind == contract.DELIVER:
        return f"{run}: taking the released model"
    return run if kind in (contract.JOIN, contract.EVALUATE, contract.PLACE) else f"{run}: {phase}"
