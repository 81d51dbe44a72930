"""A live table of a run by round and hospital, drawn from the history as it grows.

It follows a file, so it shows a run of any engine, in this process or another.
"""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Event = dict[str, Any]
REFRESH_INTERVAL_S = 0.25
MAX_HOSPITALS_SHOWN = 12


class HistoryReader:
    """Reads the events that were added to a history since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> list[Event]:
        """Gives the whole lines added since the last call; a line still being written waits for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as history:
            history.seek(self._offset)
            added = history.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class LiveProgress:
    """A context in which a table of the run's rounds is shown and kept up to date.

    At a terminal the table is redrawn in place; elsewhere each event is one plain line.
    """

    def __init__(self, history_file: Path, *, num_rounds: int, console: Console) -> None:
        self._reader = HistoryReader(history_file)
        self._num_rounds = num_rounds
        self._console = console
        self._events: list[Event] = []
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
        self._events += added
        if self._live is not None:
            self._live.update(self._view(is_running=is_running))
            return
        for event in added:
            for line in plain_lines(event, self._num_rounds):
                self._console.print(line, highlight=False)

    def _view(self, *, is_running: bool) -> RenderableType:
        table = rounds_table(self._events)
        if not is_running:
            return table
        text = f" {stage(self._events, self._num_rounds)} · {time.monotonic() - self._begin:.0f} s"
        return Group(table, Spinner("dots", text=Text(text)))


def stage(events: list[Event], num_rounds: int) -> str:
    """Gives what the run is doing now, in words."""
    kinds = [event["event"] for event in events]
    if "start" not in kinds:
        return "waiting for the hospitals to join"
    done = kinds.count("round")
    if done >= num_rounds:
        closing = any(event["event"] == "validation" and event["round"] == num_rounds for event in events)
        return "scoring the released model on the test split" if closing else "judging the final model"
    answered = sum(event["event"] == "answer" and event["round"] == done + 1 for event in events)
    hospitals = len(next(event for event in events if event["event"] == "start")["hospitals"])
    return f"round {done + 1} of {num_rounds}: {answered} of {hospitals} hospitals have answered"


def rounds_table(events: list[Event]) -> Table:
    """Gives a table with a line for the global model after each round, and one a hospital for the newest round.

    AUROC is on validation images, of the global model after that round, pooled or at one hospital. It is known when the
    next round's answers are in.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("round", "", "images", "training BCE", "training MSE", "validation AUROC", "seconds"):
        table.add_column(name, justify="left" if name == "" else "right")
    judged = {event["round"]: event for event in events if event["event"] == "validation"}
    trained = [event for event in events if event["event"] == "answer" and event["training"] is not None]
    newest = max((event["round"] for event in trained), default=0)
    for event in events:
        if event["event"] == "round":
            if event["round"] == newest:
                _add_hospitals(table, [answer for answer in trained if answer["round"] == newest], judged)
            _add_round(table, event, judged)
    if not any(event["event"] == "round" and event["round"] == newest for event in events):
        _add_hospitals(table, [answer for answer in trained if answer["round"] == newest], judged)
    return table


def _add_round(table: Table, event: Event, judged: dict[int, Event]) -> None:
    number, hospitals = event["round"], event["hospitals"].values()
    images = sum(hospital["images_seen"] for hospital in hospitals)
    losses = [
        figure(
            sum(hospital[key] * hospital["images_seen"] for hospital in hospitals) / images if images else None, digits
        )
        for key, digits in (("bce", 4), ("mse", 5))
    ]
    held = sum(hospital["num_images"] for hospital in hospitals)
    row = [str(number), "global model", str(held), *losses, _auroc(judged, number), f"{event['seconds']:.1f}"]
    table.add_row(*row, style="bold")
    for name, reason in event["refused"].items():
        table.add_row(str(number), name, Text(f"refused: {reason}", style="red"))
    for name in event["missing"]:
        table.add_row(str(number), name, Text("did not answer in time", style="red"))


def _add_hospitals(table: Table, answers: list[Event], judged: dict[int, Event]) -> None:
    for answer in answers[:MAX_HOSPITALS_SHOWN]:
        training, number = answer["training"], answer["round"]
        losses = [figure(training["bce"]), figure(training["mse"], 5)]
        auroc = _auroc(judged, number, hospital=answer["hospital"])
        row = [str(number), answer["hospital"], str(training["num_images"]), *losses, auroc]
        table.add_row(*row, f"{training['seconds']:.1f}", style="dim")
    if len(answers) > MAX_HOSPITALS_SHOWN:
        table.add_row("", f"… and {len(answers) - MAX_HOSPITALS_SHOWN} more", style="dim")


def _auroc(judged: dict[int, Event], number: int, *, hospital: str | None = None) -> str:
    if number not in judged:
        return "…"
    figures = judged[number] if hospital is None else judged[number]["hospitals"].get(hospital, {})
    return figure(figures.get("macro_auroc"))


def plain_lines(event: Event, num_rounds: int) -> list[str]:
    """Gives an event as lines for a log."""
    if event["event"] == "start":
        return [f"{len(event['hospitals'])} hospitals joined: {', '.join(event['hospitals'])}"]
    if event["event"] == "answer" and event["training"] is not None:
        training = event["training"]
        return [
            f"round {event['round']}/{num_rounds}  {event['hospital']}  {training['num_images']} images  "
            f"BCE {figure(training['bce'])}  MSE {figure(training['mse'], 5)}  {training['seconds']:.1f} s"
        ]
    if event["event"] == "validation":
        return [
            f"round {event['round']}/{num_rounds}  global model  validation AUROC {figure(event['macro_auroc'])}  "
            f"BCE {figure(event['bce'])}  MSE {figure(event['mse'], 5)}"
        ]
    if event["event"] == "round":
        refused = [f"round {event['round']}: refused {name}: {why}" for name, why in event["refused"].items()]
        return refused + [f"round {event['round']}: no answer from {name}" for name in event["missing"]]
    return []


def figure(value: float | None, digits: int = 4) -> str:
    """Gives a number, or a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"
