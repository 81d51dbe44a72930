"""What a person at the terminal sees of a running client: nothing from outside can change or end it."""

import logging
import re
from io import StringIO

import pytest
from rich.console import Console

from aecnn import contract
from client import supervise
from client.display import REFUSED_FOR_LONG_S, Display, sentence_of_work
from client.log_lines import logs_on, say_line

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) ")
DONE = {"run": "small", "run_id": "0123456789abcdef", "models": "models/small-0123456789abcdef"}


def _display(console, work):
    return Display(console, connection=lambda: "connected", work=lambda: work)


@pytest.mark.parametrize(
    ("kind", "round_", "phase", "told"),
    [
        (contract.JOIN, 0, "joining", "run small, joining"),
        (contract.TRAIN, 2, "training", "run small, round 2: training"),
        (contract.EVALUATE, 4, "evaluating", "run small, evaluation after round 3"),
        (contract.EVALUATE, 1, "evaluating", "run small, evaluation before round 1"),
        (contract.DELIVER, 4, "delivering", "run small, delivery: taking the released model"),
    ],
)
def test_a_run_of_three_rounds_has_no_fourth(kind, round_, phase, told):
    assert sentence_of_work({"run": "small", "kind": kind, "round": round_, "phase": phase}) == told


def _told(states, *, seconds=1.0):
    """The sentences shown for a sequence of connection and work, one step of the clock after another."""
    written, now = StringIO(), [0.0]
    step = iter(states)
    state = {}
    display = Display(
        Console(file=written, width=1000),
        connection=lambda: state["connection"],
        work=lambda: state["work"],
        clock=lambda: now[0],
    )
    for state["connection"], state["work"] in step:
        display.update()
        now[0] += seconds
    lines = written.getvalue().splitlines()
    assert all(LINE.match(line) for line in lines)
    return [LINE.sub("", line) for line in lines]


def test_after_the_delivery_the_log_says_that_the_run_is_complete_and_that_the_next_is_awaited():
    idle = {"phase": "idle"}
    assert _told([("connected", idle), ("connected", idle | {"completed": DONE})])[-1] == (
        "run small is complete; the released model is in models/small-0123456789abcdef: waiting for the next run"
    )
    gone = _told([("connected", idle | {"completed": DONE}), ("unreachable", idle | {"completed": DONE})])
    assert gone[-1] == "the centre does not answer, as is usual after a run: waiting for the next run"
    assert "trying until it does" in _told([("unreachable", idle)])[-1]
    kept_nothing = _told([("connected", idle | {"completed": DONE | {"models": None}})])
    assert "its files are not kept here" in kept_nothing[0]


def test_a_key_that_stays_refused_is_told_to_be_revoked_perhaps_and_what_to_do_once():
    again = [("starting", None), ("refused", None), ("ended", None)]
    short = _told([("connected", None), *again * 3])
    assert [line for line in short if "does not let this hospital in" in line] == short[-1:]
    assert "may have been revoked" in short[-1]
    long = _told([("connected", None), *again * 3], seconds=REFUSED_FOR_LONG_S / 2)
    assert len(long) == len(short) + 1
    assert all(word in long[-1] for word in ("ask the centre", "rotate-key", "enrolment-request.json"))
    assert _told([("refused", None), ("connected", None), ("starting", None)])[-1] == "the SuperNode starts"


def test_all_lines_of_a_service_have_one_form_whoever_writes_them():
    written = StringIO()
    console = Console(file=written, width=1000)
    before = logging.getLogger().handlers[:]
    with logs_on(console):
        say_line(console, "said")
        logging.getLogger("aecnn.processes").warning("[red]SuperNode[/] ended with code %d", 1)
    first, second = written.getvalue().splitlines()
    assert (LINE.sub("", first), LINE.sub("", second)) == ("said", "[red]SuperNode[/] ended with code 1")
    assert LINE.match(first)
    assert LINE.match(second)
    assert logging.getLogger().handlers == before


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
