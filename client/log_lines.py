"""One form of line for every log of the client: when, how serious, and a text that steers no terminal."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from aecnn.console import say_plain
from client.inventory import printable

_TIME = "%Y-%m-%d %H:%M:%S%z"
_BAR = "  | "  # before what belongs to the line above


class LineFormatter(logging.Formatter):
    """Gives a record as one line; a traceback follows behind a bar.

    An exception's message may be the centre's text: no control character of it is written, and no line of it can be
    taken for one of ours.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", _TIME)

    def format(self, record: logging.LogRecord) -> str:
        """Gives the text."""
        first, *more = super().format(record).splitlines()
        return "\n".join([printable(first), *(f"{_BAR}{printable(line)}" for line in more)])


def log_to_standard_error() -> None:
    """Sends this process's logs to standard error, Flower's own among them."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every call
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.INFO)
    flower.handlers.clear()  # they would say everything a second time, in colours and without a time


@contextmanager
def logs_on(console: Console) -> Iterator[None]:
    """Has all that this process logs meanwhile printed on a console, among the lines of `say_line`."""
    root = logging.getLogger()
    before = root.handlers[:]
    handler = _ConsoleHandler(console)
    handler.setFormatter(LineFormatter())
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before


def say_line(console: Console, sentence: str) -> None:
    """Prints a sentence in the form of a log's line."""
    say_plain(console, f"{time.strftime(_TIME)} INFO {sentence}")


class _ConsoleHandler(logging.Handler):
    """Prints through the console that shows the progress bar, which would be torn otherwise."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        try:
            say_plain(self._console, self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does: a log that fails ends nobody
            self.handleError(record)
