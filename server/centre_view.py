"""What `flower-server start` shows: the run's live table and what the centre waits for, from the files alone."""

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from aecnn.console import plain, say_plain
from server.centre import read_json
from server.centre_runs import RunSummary, events_of
from server.progress import plain_lines
from server.rounds_table import Event, figure, rounds_table
from server.settings import CentrePaths
from server.words import counted, moment

log = logging.getLogger(__name__)

WORDS = {
    "joining": "waiting for the hospitals to join",
    "waiting": "waiting until enough hospitals take part",
    "round": "training",
    "closing": "evaluation after the last round",
    "delivering": "delivery of the released model",
    "testing": "scoring on the centre's test set",
    "done": "done",
    "failed": "failed",
}


class CentreView:
    """A context that shows the newest run: a table redrawn in place at a terminal, plain lines elsewhere."""

    def __init__(self, paths: CentrePaths, console: Console) -> None:
        self._paths, self._console = paths, console
        self._run = ""
        self._stamp: tuple[int, int] = (0, 0)
        self._events: list[Event] = []
        self._num_told = 0
        self._told_phase = ""
        self._status: Mapping[str, Any] = {}
        self._has_failed = False
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Self:
        self._paths.status.unlink(missing_ok=True)  # of an earlier start
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update(is_running=False)
        if self._live is not None:
            self._safely(self._live.stop)  # it draws once more

    def update(self, *, is_running: bool = True) -> None:
        """Reads the files again and shows what is new; whatever goes wrong in it, the federation runs on."""
        self._safely(lambda: self._update(is_running=is_running))

    def _safely(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception:  # noqa: BLE001  told with its trace below
            if not self._has_failed:
                trace = plain(traceback.format_exc()).plain  # it may hold what a hospital chose
                log.error("The run cannot be shown; it goes on, and its history has everything\n%s", trace)
            self._has_failed = True

    def _update(self, *, is_running: bool) -> None:
        self._status = read_json(self._paths.status) or self._status
        run = str(self._status.get("run", ""))
        if run != self._run:
            self._run, self._stamp, self._num_told = run, (0, 0), 0
            self._events = list(events_of(self._paths.runs / run))
            self._num_told = len(self._events) if self._live is None else 0  # of a run that goes on: told before
        self._read_history(self._paths.runs / run)
        if self._live is None:
            self._tell_new()
        else:
            self._live.update(self._picture(is_running=is_running))

    def _read_history(self, run: Path) -> None:
        try:
            stat = (run / "history.jsonl").stat()
        except OSError:
            return
        if (stat.st_size, stat.st_mtime_ns) != self._stamp:
            self._stamp = (stat.st_size, stat.st_mtime_ns)
            self._events = list(events_of(run))

    def _tell_new(self) -> None:
        phase = describe_status(self._status) if self._status.get("phase") != "round" else ""
        if phase and phase != self._told_phase:
            say_plain(self._console, f"{self._run}: {phase}" if self._run else phase)
        self._told_phase = phase
        self._num_told = min(self._num_told, len(self._events))  # a resumed run takes back what it had not finished
        for event in self._events[self._num_told :]:
            for line in plain_lines(event, int(self._status.get("num_rounds", 0))):
                say_plain(self._console, line)
        self._num_told = len(self._events)

    def _picture(self, *, is_running: bool) -> RenderableType:
        table = rounds_table(self._events, num_rounds=self._status.get("num_rounds"))
        if not is_running:
            return table
        online = ", ".join(self._status.get("online", ())) or "none"
        head = plain(f"{self._run or self._paths.folder.name} · online: {online}")
        head.stylize("dim")
        return Group(head, table, Spinner("dots", text=plain(f" {describe_status(self._status)}")))


def describe_end(summary: RunSummary, folder: Path) -> list[str]:
    """Gives how a run stands after its centre ended, in a line or two: what is released, how it scores, where to look.

    Args:
        summary: Of the run.
        folder: Its folder.
    """
    line = f"{summary.run}: {summary.status} after {counted(summary.rounds_done, 'round')}"
    if summary.released_round is not None:
        line += f"; released is the model after round {summary.released_round}"
        scores = {"validation": summary.validation_macro_auroc, "test": summary.test_macro_auroc}
        known = [f"{part} {figure(score)}" for part, score in scores.items() if score is not None]
        line += f", macro AUROC: {', '.join(known)}" if known else ", macro AUROC undefined (why: model_card.md)"
    report = folder / "report.html"
    return [line, f"report: {report}" if report.is_file() else f"folder: {folder}"]


def describe_newest(newest: RunSummary, now: Mapping[str, Any]) -> dict[str, str]:
    """Gives what is known of the newest run, by what it is called.

    Args:
        newest: As its folder tells it.
        now: The coordinator's status, which knows the id of a run that nobody has joined yet.
    """
    run_id = newest.run_id or (now.get("run_id") if now.get("run") == newest.run else None)
    reason = f": {newest.reason}" if newest.reason else ""
    rounds = f"{newest.rounds_done} of {newest.num_rounds} rounds finished"
    return {
        "newest run": newest.run,
        "its id at hospitals": str(run_id or "none yet"),
        "its state": f"{newest.status}, {rounds}{reason}",
        "validation AUROC": figure(newest.validation_macro_auroc),
        "test AUROC": figure(newest.test_macro_auroc),
    }


def describe_status(status: Mapping[str, Any]) -> str:
    """Gives in words what the centre is doing, from the coordinator's status."""
    if not status:
        return "starting"
    phase = str(status.get("phase", ""))
    words = [WORDS.get(phase, phase)]
    if phase == "round":
        words[0] = f"round {status.get('round')} of {status.get('num_rounds')}"
        if int(status.get("attempt", 1)) > 1:
            words.append(f"attempt {status['attempt']}")
    elif phase == "closing":
        words[0] = f"evaluation after round {status.get('num_rounds')}"
    answered, asked = set(status.get("answered", ())), set(status.get("asked", ()))
    if asked and phase not in ("done", "failed"):
        words.append(f"{len(answered & asked)} of {counted(len(asked), 'hospital')} answered")
        if asked - answered:
            words.append(f"waiting for {', '.join(sorted(asked - answered))}")
    if status.get("deadline_at") and phase not in ("done", "failed"):
        words.append(f"until {moment(str(status['deadline_at']))}")
    if status.get("reason"):
        words.append(str(status["reason"]))
    return " · ".join(words)
