"""The live table: what a person sees of a history that grows."""

import json

import pytest
from rich.console import Console

from server.centre_view import CentreView, describe_status
from server.progress import HistoryReader, LiveProgress, plain_lines, stage
from server.rounds_table import rounds_table
from server.settings import CentrePaths

TRAINED = {"num_images": 10, "num_steps": 2, "images_seen": 20, "bce": 0.5, "mse": 0.01, "seconds": 1.0}
START = {"event": "start", "hospitals": {"a": {}, "b": {}}}


def _answer(number, hospital, **training):
    return {"event": "answer", "round": number, "hospital": hospital, "training": TRAINED | training, "validation": {}}


def _validation(number, auroc):
    hospitals = {"a": {"macro_auroc": auroc}, "b": {"macro_auroc": None}}
    return {
        "event": "validation",
        "round": number,
        "macro_auroc": auroc,
        "bce": 0.4,
        "mse": 0.02,
        "hospitals": hospitals,
    }


def _round(number, **changes):
    hospitals = {"a": TRAINED, "b": TRAINED | {"bce": 0.7, "images_seen": 60}}
    event = {"event": "round", "round": number, "seconds": 2.5, "hospitals": hospitals, "refused": {}, "missing": []}
    return event | changes


def _text(events, num_rounds=None):
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(rounds_table(events, num_rounds=num_rounds))
    return shown.get()


def test_only_whole_lines_are_read_and_each_once(tmp_path):
    path = tmp_path / "history.jsonl"
    reader = HistoryReader(path)
    assert reader.new_events() == []
    path.write_text('{"event": "start"}\n{"event": "ro')
    assert reader.new_events() == [{"event": "start"}]
    with path.open("a") as history:
        history.write('und"}\n')
    assert reader.new_events() == [{"event": "round"}]
    assert reader.new_events() == []


def test_a_resumed_run_takes_back_what_it_had_not_finished_and_nothing_is_told_twice(tmp_path):
    path = tmp_path / "history.jsonl"
    reader = HistoryReader(path)
    path.write_text('{"event": "start"}\n{"event": "answer", "round": 1}\n')
    assert len(reader.new_events()) == 2
    path.write_text('{"event": "start"}\n{"event": "resume", "round": 0, "hospitals": ["a", "b", "c"]}\n')
    assert [event["event"] for event in reader.new_events()] == ["resume"]
    assert [event["event"] for event in reader.events] == ["start", "resume"]


def test_a_round_shows_image_weighted_losses_and_its_own_models_auroc():
    events = [START, _validation(0, 0.5), _answer(1, "a"), _answer(1, "b"), _round(1), _validation(1, 0.8)]
    lines = [line.split() for line in _text(events).splitlines()]
    assert ["1", "global", "model", "20", "0.6500", "0.01000", "0.8000", "–", "2.5"] in lines  # (0.5·20 + 0.7·60) / 80
    assert ["1", "a", "10", "0.5000", "0.01000", "0.8000", "–", "1.0"] in lines
    assert ["1", "b", "10", "0.5000", "0.01000", "–", "–", "1.0"] in lines


def test_hospitals_are_shown_for_the_newest_round_and_before_it_ends():
    events = [START, _answer(1, "a"), _answer(1, "b"), _round(1), _answer(2, "a")]
    shown = _text(events)
    assert len([line for line in shown.splitlines() if " a " in line]) == 1
    assert "…" in shown  # the AUROC of round 1 is known with the answers of round 2


def test_refusals_and_silence_are_named():
    shown = _text([START, _answer(1, "a"), _round(1, refused={"b": "holds NaN"}, missing=["c"])])
    assert "refused: holds NaN" in shown
    assert "did not answer in time" in shown
    assert plain_lines(_round(1, refused={"b": "holds NaN"}, missing=["c"]), 3) == [
        "round 1: refused b: holds NaN",
        "round 1: no answer from c",
    ]


HOSTILE = "[/foo] [bold red]x\x1b[2J"


def _hostile_events():
    return [
        START | {"refused": {"[/x]": HOSTILE}, "hospitals": {"[/a]": {}}},
        _answer(1, "[/a]"),
        {"event": "attempt", "round": 1, "attempt": 1, "reason": HOSTILE},
        _round(1, refused={"[/b]": HOSTILE}, missing=["[/c]"]),
        {"event": "joined", "hospital": "[/d]", "round": 2},
        {"event": "left", "hospital": "[/e]", "round": 2, "reason": HOSTILE},
        {"event": "delivered", "hospitals": ["[/a]"]},
        {"event": "end", "status": "failed", "reason": HOSTILE},
    ]


def test_what_a_hospital_chose_is_shown_as_it_is_and_neither_styles_nor_steers_the_terminal():
    shown = _text(_hostile_events())
    assert shown.count(r"[/foo] [bold red]x\x1b[2J") == 3
    assert all(name in shown for name in ("[/b]", "[/c]", "[/d]", "[/e]"))


def _centre(tmp_path, events):
    paths = CentrePaths(tmp_path)
    (paths.runs / "run").mkdir(parents=True)
    paths.state.mkdir()
    (paths.runs / "run" / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    status = {"run": "run", "phase": "failed", "num_rounds": 2, "online": ["[/a]"], "reason": HOSTILE}
    return paths, lambda: paths.status.write_text(json.dumps(status))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_centres_view_shows_hostile_words_to_the_end(tmp_path, is_terminal, caplog):
    paths, write_status = _centre(tmp_path, [])
    console = Console(force_terminal=is_terminal, width=200)
    with console.capture() as shown, CentreView(paths, console) as view:
        write_status()
        view.update()
        (paths.runs / "run" / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in _hostile_events()))
        view.update()
    assert "[/foo] [bold red]x" in shown.get()
    assert "x\x1b[2J" not in shown.get()
    assert caplog.text == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_history_that_cannot_be_shown_never_stops_the_federation_and_is_told_once(tmp_path, is_terminal, caplog):
    paths, write_status = _centre(tmp_path, [])
    console = Console(force_terminal=is_terminal, width=200)
    with console.capture(), CentreView(paths, console) as view:
        write_status()
        view.update()
        (paths.runs / "run" / "history.jsonl").write_text('{"event": "round"}\n')
        for _ in range(3):
            view.update()
    assert caplog.text.count("cannot be shown") == 1
    assert "KeyError" in caplog.text


def test_the_trace_of_a_view_that_failed_steers_no_terminal(tmp_path, caplog, monkeypatch):
    paths, _ = _centre(tmp_path, [])

    def fail(*_):
        raise ValueError(HOSTILE)

    monkeypatch.setattr("server.centre_view.read_json", fail)
    with CentreView(paths, Console(force_terminal=False)) as view:
        view.update()
    assert r"x\x1b[2J" in caplog.text
    assert "\x1b" not in caplog.text


def test_what_follows_the_last_round_is_named_and_has_no_number_of_its_own():
    events = [
        START,
        {"event": "joined", "hospital": "c", "round": 4},
        {"event": "left", "hospital": "b", "round": 4, "reason": "revoked"},
    ]
    shown = _text(events, num_rounds=3)
    assert "joined, from evaluation after round 3" in shown
    assert "left at the evaluation after round 3: revoked" in shown
    assert "4" not in shown
    assert [line for event in events[1:] for line in plain_lines(event, 3)] == [
        "c joined, from evaluation after round 3",
        "b left, evaluation after round 3: revoked",
    ]
    assert describe_status({"phase": "closing", "num_rounds": 3, "round": 3}) == "evaluation after round 3"
    assert describe_status({"phase": "delivering", "num_rounds": 3}) == "delivery of the released model"


def test_the_stage_is_told_in_words():
    assert stage([], 2) == "waiting for the hospitals to join"
    assert stage([START, _answer(1, "a")], 2) == "round 1 of 2: 1 of 2 hospitals answered"
    done = [START, _round(1), _round(2)]
    assert stage(done, 2) == "evaluation after round 2"
    assert stage([*done, _validation(2, 0.7)], 2) == "scoring the released model"


def test_outside_a_terminal_each_event_is_a_line(tmp_path):
    path = tmp_path / "history.jsonl"
    console = Console(force_terminal=False, width=120)
    with console.capture() as shown, LiveProgress(path, num_rounds=1, console=console):
        path.write_text("".join(json.dumps(event) + "\n" for event in (START, _answer(1, "a"), _validation(0, None))))
    lines = shown.get().splitlines()
    assert lines[0] == "2 hospitals joined: a, b"
    assert lines[1].startswith("round 1/1  a  10 images  BCE 0.5000")
    assert "validation AUROC –" in lines[2]


def test_at_a_terminal_the_table_is_drawn_in_place(tmp_path):
    path = tmp_path / "history.jsonl"
    console = Console(force_terminal=True, width=120)
    with console.capture() as shown, LiveProgress(path, num_rounds=1, console=console):
        path.write_text("".join(json.dumps(event) + "\n" for event in (START, _answer(1, "a"), _round(1))))
    assert "global model" in shown.get()


def test_who_came_late_left_was_refused_or_made_a_round_fail_is_shown_where_it_happened():
    events = [
        START | {"refused": {"x": "runs other code"}},
        {"event": "attempt", "round": 1, "attempt": 1, "reason": "1 hospital gave an update\n  - b: code 102"},
        _answer(1, "a"),
        _round(1, attempt=2, bytes={"a": 28_000_000, "b": 28_000_000}),
        {"event": "test", "round": 1, "macro_auroc": 0.6123},
        {"event": "resume", "round": 1, "hospitals": ["a", "b"]},
        {"event": "joined", "hospital": "c", "round": 2},
        {"event": "left", "hospital": "b", "round": 2, "reason": "its enrolment was revoked"},
    ]
    shown = _text(events)
    for told in (
        "attempt 2",
        "56.0",
        "0.6123",
        "goes on after round 1",
        "joined, from round 2",
        "enrolment was revoked",
    ):
        assert told in shown
    assert stage(events, 3) == "round 2 of 3: 0 of 2 hospitals answered"
    lines = [line for event in events for line in plain_lines(event, 3)]
    assert lines[:3] == [
        "2 hospitals joined: a, b",
        "x may not join: runs other code",
        "round 1: attempt 1 failed: 1 hospital gave an update\n  - b: code 102",
    ]
    assert lines[-4:] == [
        "round 1/3  global model  test AUROC 0.6123",
        "the run was interrupted and goes on after round 1",
        "c joined, from round 2",
        "b left, round 2: its enrolment was revoked",
    ]


def test_what_a_hospital_keeps_to_itself_is_a_dash_and_the_mean_is_of_those_who_tell():
    silent = TRAINED | {"bce": None, "mse": None}
    shown = _text([START, _answer(1, "a"), _answer(1, "b", **silent), _round(1, hospitals={"a": TRAINED, "b": silent})])
    lines = [line.split() for line in shown.splitlines()]
    assert ["1", "global", "model", "20", "0.5000", "0.01000", "…", "–", "2.5"] in lines
    assert ["1", "b", "10", "–", "–", "…", "–", "1.0"] in lines


def test_the_delivery_and_a_failure_are_told_in_plain_lines():
    assert plain_lines({"event": "delivered", "hospitals": ["a", "b"]}, 2) == [
        "the released model was delivered to a, b"
    ]
    assert plain_lines({"event": "end", "status": "failed", "reason": "too few"}, 2) == ["the run failed: too few"]
    assert plain_lines({"event": "end", "status": "completed", "reason": None}, 2) == []
