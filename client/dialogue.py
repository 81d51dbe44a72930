"""What ``aecnn-client`` asks a person, and how it tells results."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.console import print_json, say, say_plain
from aecnn.enrolment import EnrolmentRequest
from aecnn.errors import ConfigError
from client.audit import known_runs
from client.display import SENTENCES, WHEN_REFUSED, sentence_of_work
from client.paths import SitePaths
from client.setup import Made
from client.state import EVERY_RUN
from client.status import BudgetStatus, ClientStatus
from client.words import counted

_QUESTIONS = {
    "federation": "the centre's federation.yaml",
    "name": "this hospital's name in the federation",
    "data": "the folder of radiographs",
}


def ask_for(given: Mapping[str, object]) -> dict[str, str]:
    """Gives the values, those that are missing asked for at a terminal.

    Raises:
        ConfigError: There is no terminal; with the flag of every value that is missing.
    """
    missing = [name for name, value in given.items() if value is None]
    if missing and not sys.stdin.isatty():
        raise ConfigError("aecnn-client init", [f"--{name} is missing: {_QUESTIONS[name]}" for name in missing])
    return {name: str(typer.prompt(_QUESTIONS[name]) if name in missing else value) for name, value in given.items()}


def run_named(text: str, paths: SitePaths) -> str:
    """Gives the id of the run that a person means by its id or its name; only a run that ever asked something counts.

    Raises:
        ConfigError: It is none, or several have this name.
    """
    runs = known_runs(paths.audit_log)
    found = [run_id for run_id, name in runs.items() if text in (run_id, name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{run_id} ({name})" for run_id, name in runs.items()) or "none yet"
    problem = (
        "is the name of several runs: give the id" if found else "is no run that asked this hospital for something"
    )
    raise ConfigError("--run", [f"{text!r} {problem}; known: {known}. Without --run you withdraw from every run"])


def show_request(made: EnrolmentRequest, folder: Path, console: Console, *, is_first: bool = False) -> None:
    """Tells what was declared, and what to do next."""
    paths = SitePaths(folder)
    held = f"{counted(made.num_images, 'image')} of {counted(made.num_patients, 'patient')}"
    say(console, f"{made.name} declares {held}. Now:")
    steps = [f"look through {paths.site}: what may leave and what may be asked"] if is_first else []
    steps += [
        f"send {paths.request} to the centre by a way you trust",
        f"read the key's fingerprint to the centre over the telephone: {made.key_fingerprint}",
        f"when it is enrolled: aecnn-client check -f {folder}",
        f"take part: aecnn-client start -f {folder}",
    ]
    for number, step in enumerate(steps, start=1):
        say(console, f"  {number}. {escape(step)}")


def show_made(made: Made, folder: Path, *, as_json: bool) -> None:
    """Tells of a new folder what was declared, and on standard error what stands in the way."""
    if as_json:
        request = made.request and made.request.model_dump()
        ledger = {"folder": str(made.ledger_folder), "is_new": made.is_new_ledger}
        print_json({"folder": str(folder), "request": request, "data_fault": made.data_fault, "ledger": ledger})
    elif made.request is not None:
        show_request(made.request, folder, Console(), is_first=True)
    if not as_json:
        verb = "is made" if made.is_new_ledger else "was there, and what it knows counts here too"
        say(Console(), f"The privacy ledger {verb}: {escape(str(made.ledger_folder))}")
    for sentence in made.warnings:
        say(Console(stderr=True), f"[yellow]warning[/] {escape(sentence)}")


def show_status(status: ClientStatus, console: Console) -> None:
    """Tells how the client stands, a label before every line."""
    for label, text in _lines_of(status):
        say_plain(console, f"{label:<12}{text}")


def _lines_of(status: ClientStatus) -> Iterator[tuple[str, str]]:
    yield "hospital", status.hospital or "site.yaml does not say it"
    yield "federation", f"{status.federation}, centre at {status.address}" if status.federation else "not known"
    for fault in status.faults:
        yield "fault", fault
    yield "client", "does not run" if status.pid is None else f"runs (process {status.pid})"
    if status.connection is not None:
        yield "connection", SENTENCES[status.connection]
        if status.connection == "refused":
            yield "", WHEN_REFUSED
    if status.work is not None:
        work = status.work
        steps = f", {work['steps_done']} of {counted(work['steps'], 'step')}" if "steps" in work else ""
        yield "work", sentence_of_work(work) + steps
    if status.paused_since is not None:
        yield "pause", f"pauses since {status.paused_since}: aecnn-client resume ends it"
    for run_id, since in status.withdrawn.items():
        run = "every run" if run_id == EVERY_RUN else f"run {status.runs.get(run_id, 'of unknown name')} ({run_id})"
        yield "withdrawal", f"has withdrawn from {run} since {since}: aecnn-client resume --rejoin undoes it"
    for run_id, name in status.runs.items():
        yield "known run", f"{name} ({run_id})"
    yield "privacy", _budget_line(status.budget)


def _budget_line(budget: BudgetStatus | None) -> str:
    if budget is None:
        return "no ledger is named in the site file: no request with differential privacy is answered"
    if budget.epsilon is None:
        return f"no request with differential privacy is answered: {budget.fault}"
    left = f"{budget.left:.2f} left" if budget.left else "nothing left"
    return f"ε {budget.epsilon:.2f} of {budget.max_epsilon:g} spent by the patient who has spent most, {left}"


def show_audit(sentences: Sequence[str], problems: Sequence[str], log: Path, console: Console) -> None:
    """Tells what was answered, and whether the log is whole."""
    for sentence in sentences:
        say_plain(console, sentence)
    if sentences:
        say(
            console, "An answer is written here before the centre can fetch it; whether it did, this log does not know."
        )
    for problem in problems:
        say(console, f"[bold red]broken[/] {escape(problem)}")
    if not problems:
        say(console, f"[green]whole[/] {escape(str(log))}")


def show_models(models: Mapping[str, Mapping[str, int]], console: Console) -> None:
    """Tells which files were delivered, by run."""
    for run, files in models.items():
        say(console, escape(run))
        for file, size in files.items():
            say(console, f"  {escape(file)}: {counted(size, 'byte')}")
    if not models:
        say(console, "no model was delivered yet: the centre delivers at the end of a run")
