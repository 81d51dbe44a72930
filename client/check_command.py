"""``aecnn-client check``: all checks in one result, and how it is shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aecnn.console import say
from aecnn.data.check.outcome import Outcome, Status, worst
from aecnn.enrolment import FederationFile
from aecnn.progress import OnProgress
from client.check import (
    check_budget,
    check_centre,
    check_code,
    check_connection,
    check_data,
    check_disk,
    check_files,
    check_training,
    check_validation,
    lines_of,
)
from client.paths import SitePaths
from client.words import counted

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
    is_trainable = False
    if config is not None:
        on_check("opening images")
        found, data_report = check_data(config, paths, labels_only=labels_only, on_progress=on_progress)
        outcomes += [*found, *check_validation(config, paths), check_disk(paths.folder)]
        outcomes += check_budget(config, paths, num_patients=data_report.num_patients)
        is_trainable = data_report.status != "fail"
        if report is not None:
            write_page(data_report, report)
    outcomes += _check_way(paths, federation, on_check=on_check, is_sound=outcomes[0].status != "fail")
    if is_trainable:
        on_check("training a little")
        found, would_leave = check_training(paths)
        outcomes += found
    return CheckResult(tuple(outcomes), would_leave)


def _check_way(
    paths: SitePaths, federation: FederationFile | None, *, on_check: Callable[[str], None], is_sound: bool
) -> list[Outcome]:
    """Checks what leads to the centre: its file, the code, and the network where the folder's files are sound."""
    if federation is None:
        return []
    outcomes = [check_centre(paths, federation), check_code(federation)]
    if is_sound:
        on_check("connecting to the centre")
        outcomes += check_connection(paths, federation)
    return outcomes


@contextmanager
def check_progress() -> Iterator[tuple[OnProgress, Callable[[str], None]]]:
    """Shows on standard error what is checked now, with a count where there is one; gone when the work is done.

    Gives what to call with the images opened and their number, and what to call with the title of what begins.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None, count="")

        def on_check(title: str) -> None:
            nonlocal task
            progress.remove_task(task)  # a total that was set cannot be unset
            task = progress.add_task(title, total=None, count="")

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, count=f"{done:,} of {counted(total, 'image')}")

        yield on_progress, on_check


def show_checks(result: CheckResult, console: Console) -> None:
    """Prints the table of checks, and what would leave."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for outcome in result.outcomes:
        colour = _COLOURS[outcome.status]
        sentences = (outcome.summary, *outcome.details) if outcome.status == "warn" else (outcome.summary,)
        if outcome.status == "fail" and outcome.details:
            sentences = outcome.details
        table.add_row(f"[{colour}]{outcome.status}[/]", outcome.title, escape("\n".join(sentences)))
    _print(table, console)
    if result.would_leave is None:
        return
    say(console, f"\n{escape(_about_rehearsal(result.would_leave))}")
    leaving = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("asked", "record", "key", "in the rehearsal"):
        leaving.add_column(name, overflow="fold")
    for message, record, key, value in lines_of(result.would_leave):
        short = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
        leaving.add_row(*map(escape, (message, record, key, short)))
    _print(leaving, console)


def _about_rehearsal(would_leave: dict[str, Any]) -> str:
    """Says what the figures are of: never of a real round."""
    plan = would_leave["plan"]
    batch = counted(plan["training"]["batch_size"], "image")
    round_ = f"{plan['model']['backbone']} at {plan['images']['size_px']} px, a few of the patients, "
    round_ += f"{counted(plan['training']['local_steps'], 'step')} of {batch}"
    kind = "with" if plan["training"]["privacy"] else "without"
    return (
        f"These keys would leave in a run {kind} differential privacy, and no others: by query and query.placements "
        "once, by train each round; a round that is only judged leaves train's but for report and weights. The "
        f"figures are not a real round's: they come from a tiny rehearsal on this machine ({round_}) and stay here."
    )


def _print(table: Table, console: Console) -> None:
    """Prints a table that is folded to a terminal, and no line of it in a pipe."""
    wide = console if console.is_terminal else Console(file=console.file, width=_PIPE_WIDTH)
    wide.print(table)
