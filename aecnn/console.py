"""What all our command lines share: sentences, tables, progress, JSON, and how errors end a command."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aecnn.errors import AecnnError

EXIT_FAULTY_INPUT = 2

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def table_of(first: str, *others: str) -> Table:
    """Gives a plain table with these columns, figures to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "kind" else "right")
    return table


@contextmanager
def progress_bar(description: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, gone when the work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress, progress.add_task(description, total=None)


def say(console: Console, text: str) -> None:
    """Prints a sentence as it is: no colours guessed into it, and no line broken where the output is a pipe."""
    console.print(text, highlight=False, soft_wrap=True)


def say_plain(console: Console, text: str) -> None:
    """Prints a sentence in which something comes from outside: no word of it is a style, and none steers a terminal."""
    console.print(plain(text), highlight=False, soft_wrap=True)


def plain(text: str) -> Text:
    """Gives a text for a table or a line whose brackets are brackets; control characters are spelt out."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON object on standard output; a NaN in it is an error of ours, not valid JSON."""
    typer.echo(json.dumps(document, allow_nan=False))


def run_cli(cli: typer.Typer, *, exit_codes: dict[type[AecnnError], int]) -> None:
    """Runs a command line; what a user can mend is told in a sentence, without a traceback.

    Args:
        cli: The commands.
        exit_codes: Exit codes of errors that are no fault of the input; all others exit with 2.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        cli()
    except AecnnError as error:
        say(Console(stderr=True), f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(exit_codes.get(type(error), EXIT_FAULTY_INPUT))
