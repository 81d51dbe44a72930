"""What a person at the terminal, or a service's journal, sees of a running client."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aecnn.console import say_plain
from client.node_log import NodeState

SENTENCES: dict[NodeState, str] = {
    "starting": "the SuperNode starts",
    "connected": "connected to the centre",
    "unreachable": "the centre does not answer: trying until it does",
    "refused": "the centre does not let this hospital in (it has only just started, or crashed within a minute, "
    "or the key is not enrolled or revoked): trying again",
    "ended": "the SuperNode ended and is started again",
}


class Display:
    """A line for every change, and at a terminal a bar for the steps of a round.

    Args:
        console: Where to.
        connection: Tells how the SuperNode stands with the centre.
        work: Gives what the worker wrote last, None before it wrote anything.
    """

    def __init__(
        self, console: Console, *, connection: Callable[[], NodeState], work: Callable[[], dict[str, Any] | None]
    ) -> None:
        self._console, self._connection, self._work = console, connection, work
        self._told: dict[str, str] = {}
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
        self._tell("connection", SENTENCES[connection])
        if work:
            self._tell("work", sentence_of_work(work))
        self._progress.update(
            self._bar,
            description=f"round {work.get('round', '')}",
            completed=work.get("steps_done", 0),
            total=work.get("steps"),
            visible="steps" in work,
        )
        return connection

    def _tell(self, about: str, sentence: str) -> None:
        if self._told.get(about) != sentence:
            self._told[about] = sentence
            say_plain(self._console, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}")


def sentence_of_work(work: dict[str, Any]) -> str:
    """Says in words what the worker does, without the steps, which change every second."""
    run = f"run {work['run']}, round {work['round']}: " if "run" in work else ""
    return f"{run}{work.get('phase', 'idle')}"
