"""Reads the events of a run: the last one said of each round counts, and what went wrong is told in sentences."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pydantic import TypeAdapter, ValidationError

from aecnn.evaluation.report.events import (
    Answer,
    Attempt,
    Delivered,
    End,
    HospitalCounts,
    Joined,
    Left,
    PrivacySpent,
    Resume,
    Round,
    Start,
    Test,
    Validation,
)
from aecnn.evaluation.report.scores import Judged
from aecnn.evaluation.report.words import date, resumptions, round_named

Event = Start | Answer | Validation | Round | End | Joined | Left | Attempt | Resume | Test | Delivered | Judged
_KINDS: dict[str, type[Event]] = {
    "start": Start,
    "answer": Answer,
    "validation": Validation,
    "round": Round,
    "end": End,
    "joined": Joined,
    "left": Left,
    "attempt": Attempt,
    "resume": Resume,
    "test": Test,
    "delivered": Delivered,
    "judged": Judged,
}


@dataclass(frozen=True)
class History:
    """The events of a run, the last one said of each round counting."""

    start: Start
    validations: tuple[Validation, ...]  # by round
    rounds: tuple[Round, ...]  # by round
    end: End | None
    tests: tuple[Test, ...] = ()  # by round
    judged: Judged | None = None  # the released model on all validation images, with intervals
    late: tuple[Joined, ...] = ()  # hospitals that came late
    incidents: tuple[str, ...] = ()  # what did not go by itself, in order
    delivered: tuple[str, ...] | None = None  # hospitals; None: nothing was to be delivered, or not yet
    costs: tuple[tuple[str, int, PrivacySpent], ...] = ()  # hospital, round and all it has spent by then, as it came
    resumed_after: tuple[int, ...] = ()  # the rounds after which an interrupted run went on, each once

    @cached_property
    def hospitals(self) -> dict[str, HospitalCounts]:
        """What each hospital brings, those that came late last."""
        return {**self.start.hospitals, **{joined.hospital: joined.counts for joined in self.late}}

    @cached_property
    def privacy(self) -> dict[str, PrivacySpent]:
        """What each hospital's patients have spent by the last answer; empty without differential privacy."""
        return {hospital: spent for hospital, _, spent in self.costs}

    @property
    def released_round(self) -> int | None:
        """The round whose model is released; None where none is, or not yet."""
        return self.end.released_round if self.end else None

    @property
    def hospital_names(self) -> tuple[str, ...]:
        """Every hospital the run speaks of, those of the start event first."""
        in_validation = [name for event in self.validations for name in event.hospitals]
        in_training = [name for event in self.rounds for name in event.hospitals]
        return tuple(dict.fromkeys([*self.hospitals, *in_validation, *in_training, *self.privacy]))

    def counts(self, hospital: str) -> HospitalCounts:
        """What a hospital brings; all unknown where no event says it."""
        return self.hospitals.get(hospital, HospitalCounts())


def history_of(text: str, notes: list[str], *, num_rounds: int | None = None) -> History:
    """Reads a history; what cannot be read becomes a note.

    Args:
        text: Of ``history.jsonl``.
        notes: Added to.
        num_rounds: Of the run, so that what follows the last one is named; None where it is not known.
    """
    start, end, delivered, judged = Start(), None, None, None
    validations: dict[int, Validation] = {}
    rounds: dict[int, Round] = {}
    tests: dict[int, Test] = {}
    late: dict[str, Joined] = {}
    incidents: list[str] = []
    resumed: set[int] = set()
    costs: list[tuple[str, int, PrivacySpent]] = []
    for event in _events(text, notes):
        match event:
            case Start():
                start, end = event, None
            case End():
                end = event
            case Resume():
                end = None
                resumed.add(event.round)
            case Validation():
                validations[event.round] = event
            case Round():
                rounds[event.round] = event
            case Test():
                tests[event.round] = event
            case Joined():
                late[event.hospital] = event
            case Delivered():
                delivered = event.hospitals
            case Judged():
                judged = event
            case Answer() if event.privacy is not None:
                costs.append((event.hospital, event.round, event.privacy))
        incidents += _told(event, num_rounds)
    return History(
        start=start,
        validations=tuple(validations[number] for number in sorted(validations)),
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        end=end,
        tests=tuple(tests[number] for number in sorted(tests)),
        judged=judged,
        late=tuple(late.values()),
        incidents=tuple(incidents),
        delivered=delivered,
        costs=tuple(costs),
        resumed_after=tuple(sorted(resumed)),
    )


def first_fault(error: ValidationError) -> str:
    """Gives where and why a document is not what was expected."""
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'the file'}: {fault['msg'].lower()}"


def _told(event: Event, num_rounds: int | None) -> list[str]:
    """An event that is no result, in sentences."""
    match event:
        case Start():
            return [f"{name} was not let in: {reason}." for name, reason in event.refused.items()]
        case Joined():
            return [f"{event.hospital} came late and took part from {round_named(event.round, num_rounds)}."]
        case Left():
            return [f"{event.hospital} left in {round_named(event.round, num_rounds)}: {event.reason}."]
        case Attempt():
            return [f"Round {event.round}, attempt {event.attempt}: {'; '.join(event.reason.split(chr(10) + '  - '))}."]
        case Resume():
            when = f" on {date(event.at)}" if event.at else ""
            return [f"The run was {resumptions([event.round])}{when}."]
        case Round():
            refused = [f"Round {event.round}: {name} was refused: {why}." for name, why in event.refused.items()]
            return refused + [f"Round {event.round}: no answer from {name}." for name in event.missing]
        case End() if event.status != "completed":
            return [f"The run ended: {event.status}."]
    return []


def _events(text: str, notes: list[str]) -> Iterator[Event]:
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            kind = _KINDS.get(document.get("event"))
            if kind is not None:
                event: Event = TypeAdapter(kind).validate_python(document)
                yield event
        except ValidationError as error:
            notes.append(f"history.jsonl, line {number}, is left out ({first_fault(error)}).")
        except (json.JSONDecodeError, AttributeError, TypeError, RecursionError):
            if number == len(lines):  # no line break after it: written half
                notes.append(
                    f"history.jsonl ends in the middle of line {number}: the run was interrupted while writing it. "
                    "That line is left out."
                )
            else:
                notes.append(f"history.jsonl, line {number}, is not a JSON object; it is left out.")
