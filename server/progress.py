"""A live table of a run by round and hospital, drawn from the history as it grows.

It follows a file, so it shows a run of any engine, in this process or another, simulated or not.
"""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from aecnn.console import plain, say_plain
from server.privacy import epsilon_named, spent_in_words
from server.rounds_table import Event, figure, megabytes, rounds_table
from server.words import counted, round_named

REFRESH_INTERVAL_S = 0.25


class HistoryReader:
    """Follows a history that grows; a run that is resumed takes back what it had not finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._lines: list[bytes] = []
        self.events: list[Event] = []  # all that are in the history now

    def new_events(self) -> list[Event]:
        """Gives the whole lines that were not there at the last call; one still being written waits for the next."""
        if not self._path.exists():
            return []
        stat = self._path.stat()
        if (stat.st_size, stat.st_mtime_ns) == self._stamp:
            return []
        self._stamp = (stat.st_size, stat.st_mtime_ns)
        content = self._path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        same = 0
        for old, new in zip(self._lines, lines, strict=False):
            if old != new:
                break
            same += 1
        self._lines = lines
        added = [json.loads(line) for line in lines[same:]]
        self.events = self.events[:same] + added
        return added


class LiveProgress:
    """A context in which a table of the run's rounds is shown and kept up to date.

    At a terminal the table is redrawn in place; elsewhere each event is one plain line.
    """

    def __init__(self, history_file: Path, *, num_rounds: int, console: Console) -> None:
        self._reader = HistoryReader(history_file)
        self._num_rounds = num_rounds
        self._console = console
        self._begin = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._update(is_running=False)
        if self._live is not None:
            self._live.stop()

    def _follow(self) -> None:
        while not self._stop.wait(REFRESH_INTERVAL_S):
            self._update(is_running=True)

    def _update(self, *, is_running: bool) -> None:
        added = self._reader.new_events()
        if self._live is not None:
            self._live.update(self._view(is_running=is_running))
            return
        for event in added:
            for line in plain_lines(event, self._num_rounds):
                say_plain(self._console, line)

    def _view(self, *, is_running: bool) -> RenderableType:
        table = rounds_table(self._reader.events, num_rounds=self._num_rounds)
        if not is_running:
            return table
        text = f" {stage(self._reader.events, self._num_rounds)} · {time.monotonic() - self._begin:.0f} s"
        return Group(table, Spinner("dots", text=plain(text)))


def stage(events: list[Event], num_rounds: int) -> str:
    """Gives what the run is doing now, in words."""
    kinds = [event["event"] for event in events]
    if "start" not in kinds:
        return "waiting for the hospitals to join"
    if kinds[-1] == "end":
        return "the run has ended"
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    if done >= num_rounds:
        closing = any(event["event"] == "validation" and event["round"] == num_rounds for event in events)
        return "scoring the released model" if closing else round_named(done + 1, num_rounds)
    number = done + 1
    answered = {event["hospital"] for event in events if event["event"] == "answer" and event["round"] == number}
    attempts = sum(event["event"] == "attempt" and event["round"] == number for event in events)
    again = f", attempt {attempts + 1}" if attempts else ""
    asked = counted(len(_present(events)), "hospital")
    return f"round {number} of {num_rounds}{again}: {len(answered)} of {asked} answered"


def _present(events: list[Event]) -> set[str]:
    """Who takes part after all that has happened."""
    names: set[str] = set()
    for event in events:
        match event["event"]:
            case "start" | "resume":
                names = set(event["hospitals"])
            case "joined":
                names.add(event["hospital"])
            case "left":
                names.discard(event["hospital"])
    return names


def plain_lines(event: Event, num_rounds: int) -> list[str]:
    """Gives an event as lines for a log."""
    match event["event"]:
        case "start":
            refused = [f"{name} may not join: {why}" for name, why in event.get("refused", {}).items()]
            joined = counted(len(event["hospitals"]), "hospital")
            central = event.get("central_privacy", {}).get("warning")
            warned = [f"central privacy: {central}"] if central else []
            return [f"{joined} joined: {', '.join(event['hospitals'])}", *refused, *warned]
        case "answer" if event["training"] is not None:
            return [_answer_line(event, num_rounds)]
        case "validation":
            return [
                f"round {event['round']}/{num_rounds}  global model  validation AUROC {figure(event['macro_auroc'])}  "
                + (
                    "with noise of differential privacy"
                    if event.get("is_noised")
                    else f"BCE {figure(event['bce'])}  MSE {figure(event['mse'], 5)}"
                )
            ]
        case "judged":
            return [_judged_line(event, num_rounds)]
        case "test":
            auroc = figure(event["macro_auroc"])
            return [f"round {event['round']}/{num_rounds}  global model  test AUROC {auroc}"]
        case "round":
            refused = [f"round {event['round']}: refused {name}: {why}" for name, why in event["refused"].items()]
            silent = [f"round {event['round']}: no answer from {name}" for name in event["missing"]]
            return [*refused, *silent, *_central_lines(event)]
        case "attempt":
            return [f"round {event['round']}: attempt {event['attempt']} failed: {event['reason']}"]
        case "joined":
            return [f"{event['hospital']} joined, from {round_named(event['round'], num_rounds)}"]
        case "left":
            return [f"{event['hospital']} left, {round_named(event['round'], num_rounds)}: {event['reason']}"]
        case "resume":
            return [f"the run was interrupted and goes on after round {event['round']}"]
        case "delivered":
            return [f"the released model was delivered to {', '.join(event['hospitals']) or 'no hospital'}"]
        case "end":
            failed = [f"the run {event['status']}: {event['reason']}"] if event["status"] != "completed" else []
            spent = spent_in_words(event.get("privacy", {}))
            return [*failed, *([f"privacy spent: {spent}"] if spent else [])]
    return []


def _answer_line(event: Event, num_rounds: int) -> str:
    training, privacy = event["training"], event.get("privacy")
    size = f"{training['num_images']} {'images' if privacy is None else 'patients'}"
    told = f"BCE {figure(training['bce'])}  MSE {figure(training['mse'], 5)}"
    if privacy is not None:
        told = f"ε {epsilon_named(privacy['epsilon'])} at δ {privacy['delta']:.3g}"
    seconds = "" if training["seconds"] is None else f"  {training['seconds']:.1f} s"
    place = f"round {event['round']}/{num_rounds}  {event['hospital']}"
    return f"{place}  {size}  {told}  {megabytes(event.get('bytes', 0))} MB{seconds}"


def _judged_line(event: Event, num_rounds: int) -> str:
    ends = event["macro_auroc_ci"]
    told = "" if ends is None else f" (95 % interval {figure(ends[0])} to {figure(ends[1])}, {event['interval']})"
    if event["macro_auroc"] is None:
        told = (
            ": no finding of which hospitals told both positives and negatives (model_card.md says what was withheld)"
        )
    return f"round {event['round']}/{num_rounds}  released model  validation AUROC {figure(event['macro_auroc'])}{told}"


def _central_lines(event: Event) -> list[str]:
    central = event.get("central_privacy")
    if central is None:
        return []
    return [
        f"round {event['round']}: hospital-level ε {epsilon_named(central['epsilon'])} at δ {central['delta']:.3g}, "
        f"noise of {central['noise_to_clip']:.2g} × the clip ({central['clipping_norm']:.4g}) on every weight"
    ]
