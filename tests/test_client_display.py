"""What a person at the terminal sees of a running client: nothing from outside can change or end it."""

from io import StringIO

from rich.console import Console

from client import supervise
from client.display import Display


def _display(console, work):
    return Display(console, connection=lambda: "connected", work=lambda: work)


def test_text_from_outside_is_shown_as_it_is():
    written = StringIO()
    work = {"run": "[/x][bold]", "round": "[/]", "phase": "[red]training", "steps": 2, "steps_done": 1}
    with _display(Console(file=written, width=200, force_terminal=True), work) as display:
        assert display.update() == "connected"
        display._progress.refresh()
    assert "run [/x][bold], round [/]: [red]training" in written.getvalue()


def test_a_display_that_fails_is_logged_and_the_client_goes_on(caplog):
    display = _display(Console(file=StringIO()), {"steps": object(), "run": 1})  # a status without its round
    assert supervise._shown(display) is None
    assert "the client goes on" in caplog.text
