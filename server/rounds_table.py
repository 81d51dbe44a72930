"""A run's rounds as a table, from the events of its history."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from aecnn.console import plain
from server.privacy import epsilon_named
from server.words import round_named

Event = dict[str, Any]
MAX_HOSPITALS_SHOWN = 12


@dataclass(frozen=True)
class Shown:
    """Which columns the table has."""

    is_private: bool
    is_tested: bool

    @property
    def columns(self) -> list[str]:
        """Their names, in order; under privacy a hospital's size is a declared number of patients."""
        size = "patients" if self.is_private else "images"
        columns = ["round", "", size, "training BCE", "training MSE", "validation AUROC"]
        optional = ["test AUROC"] * self.is_tested + ["ε"] * self.is_private
        return [*columns, *optional, "MB", "seconds"]


def rounds_table(events: list[Event], *, num_rounds: int | None) -> Table:
    """Gives a table with a line for the global model after each round, and one a hospital for the newest round.

    AUROC is of the global model after that round: on validation images, pooled or at one hospital, known when the next
    round's answers are in; and on the centre's test images, where it has some.

    Args:
        events: Of the history.
        num_rounds: Of the run; None where it is not known yet.
    """
    tested = {event["round"]: event for event in events if event["event"] == "test"}
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    shown = Shown(is_private=any("privacy" in event for event in events), is_tested=bool(tested))
    for name in shown.columns:
        table.add_column(name, justify="left" if name == "" else "right")
    for warning in (event.get("central_privacy", {}).get("warning") for event in events if event["event"] == "start"):
        table.caption = _told(f"Central privacy: {warning}", "yellow") if warning else None
    judged = _judged(events)
    answers = {
        (event["round"], event["hospital"]): event
        for event in events
        if event["event"] == "answer" and event["training"] is not None
    }
    newest = max((number for number, _ in answers), default=0)
    of_newest = [answer for (number, _), answer in answers.items() if number == newest]
    if not any(event["event"] == "round" and event["round"] == newest for event in events):
        events = [*events, {"event": "newest"}]
    for event in events:
        if event["event"] == "newest" or (event["event"] == "round" and event["round"] == newest):
            _add_hospitals(table, of_newest, judged, shown)
        if event["event"] == "round":
            _add_round(table, event, judged, tested, shown)
        _add_incident(table, event, num_rounds)
    return table


def _judged(events: list[Event]) -> dict[int, Event]:
    """How each round's model was judged; under privacy those that never were are there without a figure."""
    judged = {event["round"]: event for event in events if event["event"] == "validation"}
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    never: Event = {"hospitals": {}}
    has_ended = any(event["event"] == "end" for event in events)
    return {**dict.fromkeys(range(done + has_ended), never), **judged}


def _add_round(table: Table, event: Event, judged: dict[int, Event], tested: dict[int, Event], shown: Shown) -> None:
    number, hospitals = event["round"], event["hospitals"].values()
    held = sum(hospital["num_images"] for hospital in hospitals)
    name = "global model" if event.get("attempt", 1) == 1 else f"global model, attempt {event['attempt']}"
    table.add_row(
        str(number),
        name,
        str(held),
        figure(_mean(hospitals, "bce")),
        figure(_mean(hospitals, "mse"), 5),
        _auroc(judged, number),
        *([figure(tested.get(number, {}).get("macro_auroc"))] if shown.is_tested else []),
        *([_largest_epsilon(event.get("privacy", {}))] if shown.is_private else []),
        megabytes(sum(event.get("bytes", {}).values())),
        figure(event["seconds"], 1),
        style="bold",
    )
    for name, reason in event["refused"].items():
        table.add_row(str(number), plain(name), _told(f"refused: {reason}", "red"))
    for name in event["missing"]:
        table.add_row(str(number), plain(name), _told("did not answer in time", "red"))


def _mean(hospitals: Iterable[Event], key: str) -> float | None:
    """Mean over the images seen, of the hospitals that tell it."""
    told = [hospital for hospital in hospitals if hospital[key] is not None and hospital["images_seen"]]
    images = sum(hospital["images_seen"] for hospital in told)
    return sum(hospital[key] * hospital["images_seen"] for hospital in told) / images if images else None


def _add_incident(table: Table, event: Event, num_rounds: int | None) -> None:
    """Adds what is not a round's result: who came or left, and what had to be done again."""
    match event["event"]:
        case "joined":
            told = f"joined, from {round_named(event['round'], num_rounds)}"
            table.add_row("", plain(event["hospital"]), plain(told))
        case "left" if num_rounds and event["round"] > num_rounds:
            told = f"left at the {round_named(event['round'], num_rounds)}: {event['reason']}"
            table.add_row("", plain(event["hospital"]), _told(told, "yellow"))
        case "left":
            table.add_row(str(event["round"]), plain(event["hospital"]), _told(f"left: {event['reason']}", "yellow"))
        case "attempt":
            told = f"tried again: {event['reason'].splitlines()[0]}"
            table.add_row(str(event["round"]), "", _told(told, "yellow"))
        case "resume":
            table.add_row("", "", _told(f"interrupted; goes on after round {event['round']}", "yellow"))


def _largest_epsilon(privacy: dict[str, Event]) -> str:
    """Of the hospitals' patients, all rounds until then."""
    trained = [spent["epsilon"] for spent in privacy.values() if spent["steps"]]
    if not trained:
        return figure(None)
    return epsilon_named(None if None in trained else max(trained))


def _add_hospitals(table: Table, answers: list[Event], judged: dict[int, Event], shown: Shown) -> None:
    for answer in answers[:MAX_HOSPITALS_SHOWN]:
        training, number = answer["training"], answer["round"]
        table.add_row(
            str(number),
            plain(answer["hospital"]),
            str(training["num_images"]),
            figure(training["bce"]),
            figure(training["mse"], 5),
            _auroc(judged, number, hospital=answer["hospital"]),
            *([""] if shown.is_tested else []),
            *([_largest_epsilon({"": answer["privacy"]} if "privacy" in answer else {})] if shown.is_private else []),
            megabytes(answer.get("bytes", 0)),
            figure(training["seconds"], 1),
            style="dim",
        )
    if len(answers) > MAX_HOSPITALS_SHOWN:
        table.add_row("", f"… and {len(answers) - MAX_HOSPITALS_SHOWN} more", style="dim")


def _auroc(judged: dict[int, Event], number: int, *, hospital: str | None = None) -> str:
    if number not in judged:
        return "…"
    figures = judged[number] if hospital is None else judged[number]["hospitals"].get(hospital, {})
    return figure(figures.get("macro_auroc"))


def _told(text: str, style: str) -> Text:
    told = plain(text)
    told.stylize(style)
    return told


def megabytes(num_bytes: int) -> str:
    """Gives a size in MB, or a dash where nothing was sent."""
    return f"{num_bytes / 1e6:.1f}" if num_bytes else "–"


def figure(value: float | None, digits: int = 4) -> str:
    """Gives a number, or a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"
