"""The live table: what a person sees of a history that grows."""

import json

from rich.console import Console

from simulations.progress import HistoryReader, LiveProgress, plain_lines, rounds_table, stage

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


def _text(events):
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(rounds_table(events))
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


def test_a_round_shows_image_weighted_losses_and_its_own_models_auroc():
    events = [START, _validation(0, 0.5), _answer(1, "a"), _answer(1, "b"), _round(1), _validation(1, 0.8)]
    lines = [line.split() for line in _text(events).splitlines()]
    assert ["1", "global", "model", "20", "0.6500", "0.01000", "0.8000", "2.5"] in lines  # (0.5·20 + 0.7·60) / 80
    assert ["1", "a", "10", "0.5000", "0.01000", "0.8000", "1.0"] in lines
    assert ["1", "b", "10", "0.5000", "0.01000", "–", "1.0"] in lines


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


def test_the_stage_is_told_in_words():
    assert stage([], 2) == "waiting for the hospitals to join"
    assert stage([START, _answer(1, "a")], 2) == "round 1 of 2: 1 of 2 hospitals have answered"
    done = [START, _round(1), _round(2)]
    assert stage(done, 2) == "judging the final model"
    assert stage([*done, _validation(2, 0.7)], 2) == "scoring the released model on the test split"


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
