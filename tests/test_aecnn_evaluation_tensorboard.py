"""TensorBoard's files of a run: read back by TensorBoard itself, they say what the history says."""

from pathlib import Path

import numpy as np
import pytest

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
    assert sorted(path.name for path in folder.iterdir()) == ["federation", *HOSPITALS]
    validations = [line for line in lines if line["event"] == "validation"]
    expected = [(line["round"], pytest.approx(line["macro_auroc"], abs=1e-6)) for line in validations]
    assert curve(folder / "federation", "validation/macro_auroc") == expected
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
