"""``aecnn-client check``: all checks in one result, and how it is shown."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aecnn.console import say
from aecnn.data.check.outcome import Outcome, Status, worst
from aecnn.progress import OnProgress
from client.check import (
    check_code,
    check_connection,
    check_data,
    check_disk,
    check_files,
    check_training,
    lines_of,
)
from client.paths import SitePaths

_COLOURS: dict[Status, str] = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_PIPE_WIDTH = 1_000
_LONGEST_VALUE = 100  # characters of a value on the screen; the file has all


@dataclass(frozen=True)
class CheckResult:
    """What the checks found, and what a round would send; None where that could not be found out."""

    outcomes: tuple[Outcome, ...]
    would_leave: dict[str, Any] | None

    @property
    def status(self) -> Status:
        """The most severe outcome."""
        return worst(self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON."""
        checks = [outcome.model_dump(exclude={"suspects"}) for outcome in self.outcomes]
        return {"status": self.status, "checks": checks, "would_leave": self.would_leave}


def run_checks(
    folder: Path,
    *,
    report: Path | None = None,
    labels_only: bool = False,
    on_progress: OnProgress = lambda done, total: None,
    on_check: Callable[[str], None] = lambda title: None,
) -> CheckResult:
    """Runs every check that the faults of an earlier one do not forbid.

    Args:
        folder: The hospital's.
        report: Where to write the data report as a page.
        labels_only: Leave the image files unopened in the data report.
        on_progress: Called with the images opened and their number.
        on_check: Called with what begins.

    Raises:
        ConfigError: The report would lie where it must not.
    """
    from aecnn.data.check.page import refuse_place, write_page

    if report is not None:
        refuse_place(report)
    paths, would_leave = SitePaths(folder), None
    outcomes, config, federation = check_files(paths)
    if config is not None:
        on_check("opening images")
        found, data_report = check_data(config, paths, labels_only=labels_only, on_progress=on_progress)
        outcomes += found
        if report is not None:
            write_page(data_report, report)
        outcomes.append(check_disk(paths.folder))
    if federation is not None:
        outcomes.append(check_code(federation))
    if config is not None and federation is not None and outcomes[0].status != "fail":
        on_check("connecting to the centre")
        outcomes += check_connection(paths, federation)
    if config is not None and data_report.status != "fail":
        on_check("training a little")
        found, would_leave = check_training(paths)
        outcomes += found
    return CheckResult(tuple(outcomes), would_leave)


def show_checks(result: CheckResult, console: Console) -> None:
    """Prints the table of checks, and what would leave."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for outcome in result.outcomes:
        colour = _COLOURS[outcome.status]
        sentences = outcome.details if outcome.status == "fail" and outcome.details else (outcome.summary,)
        table.add_row(f"[{colour}]{outcome.status}[/]", outcome.title, escape("\n".join(sentences)))
    _print(table, console)
    if result.would_leave is None:
        return
    say(console, "\nIn a round this would leave, and nothing else (figures of the rehearsal, see --help):")
    leaving = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("asked", "record", "key", "value"):
        leaving.add_column(name, overflow="fold")
    for message, record, key, value in lines_of(result.would_leave):
        short = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
        leaving.add_row(*map(escape, (message, record, key, short)))
    _print(leaving, console)


def _print(table: Table, console: Console) -> None:
    """Prints a table that is folded to a terminal, and no line of it in a pipe."""
    wide = console if console.is_terminal else Console(file=console.file, width=_PIPE_WIDTH)
    wide.print(table)
