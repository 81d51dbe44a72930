"""TensorBoard's files of a run: read back by TensorBoard itself, they say what the history says."""

import logging
from pathlib import Path

import numpy as np
import pytest

from aecnn.evaluation.report import write_report
from aecnn.evaluation.report.load import load_run
from aecnn.evaluation.tensorboard import write_events
from run_folders_of_tests import HOSPITALS, NUM_ROUNDS, events, write_history

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")


def written(folder: Path, lines: list[dict]) -> Path:
    """Writes the event files of a history."""
    folder.mkdir(exist_ok=True)
    write_history(folder / "history.jsonl", lines)
    return write_events(load_run(folder).history, folder)


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Reads (round, value) as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_the_curves_of_the_federation_and_of_each_hospital(tmp_path: Path) -> None:
    lines = events(np.random.default_rng(1))
    folder = written(tmp_path / "run", lines)
    assert sorted(path.name for path in folder.iterdir()) == ["all hospitals", *HOSPITALS]
    validations = [line for line in lines if line["event"] == "validation"]
    expected = [(line["round"], pytest.approx(line["macro_auroc"], abs=1e-6)) for line in validations]
    assert curve(folder / "all hospitals", "validation/macro_auroc") == expected
    trained = [line for line in lines if line["event"] == "round" and "hospital-2" in line["hospitals"]]
    expected = [(line["round"], pytest.approx(line["hospitals"]["hospital-2"]["bce"], abs=1e-6)) for line in trained]
    assert curve(folder / "hospital-2", "training/bce") == expected
    assert len(expected) == NUM_ROUNDS - 1  # it missed a round


def test_the_same_history_gives_the_same_bytes_in_the_place_of_older_ones(tmp_path: Path) -> None:
    lines = events(np.random.default_rng(1))
    folder = written(tmp_path / "run", lines)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "of-an-older-run").mkdir()
    written(tmp_path / "run", lines)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    assert not (folder / "of-an-older-run").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["history.jsonl", "tensorboard"]


def test_no_hospitals_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lines = events(np.random.default_rng(1), hospitals=("../../outside", "/etc/passwd", "x" * 300))
    folder = written(tmp_path / "a" / "run", lines)
    assert len(list(folder.iterdir())) == 4
    assert all(path.parent.parent == folder for path in folder.rglob("events*"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "hospitals",
    [
        ("st.mary", "st_mary", "st_mary-1", "st_mary-2"),
        ("all_hospitals", "federation", "tensorboard"),
        ("a b", "a_b", "_a_b", "a/b", "", "..", "all hospitals"),  # no names of hospitals, but a history can be edited
    ],
)
def test_each_hospital_and_all_together_have_curves_of_their_own_whatever_the_names(
    hospitals: tuple[str, ...], tmp_path: Path
) -> None:
    lines = events(np.random.default_rng(1), hospitals=hospitals)
    folder = written(tmp_path / "run", lines)
    validations = [line for line in lines if line["event"] == "validation"]
    told = [validations, *([line["hospitals"][name] for line in validations] for name in hospitals)]
    expected = sorted([round(scores["bce"], 5) for scores in of_one] for of_one in told)
    found = sorted([round(value, 5) for _, value in curve(path, "validation/bce")] for path in folder.iterdir())
    assert found == expected
    assert [value for _, value in curve(folder / "all hospitals", "validation/bce")] == pytest.approx(
        [line["bce"] for line in validations]
    )


def test_curves_that_cannot_be_written_are_a_warning_and_the_report_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_history(tmp_path / "history.jsonl", events(np.random.default_rng(1)))
    (tmp_path / "tensorboard").write_text("a file in the folder's place")
    with caplog.at_level(logging.WARNING):
        page = write_report(tmp_path)
    assert "no curves for TensorBoard (NotADirectoryError" in caplog.text
    assert "hospital-2" in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "report.html", "tensorboard"]
