"""TensorBoard's event files of a run, from its history: the report's curves, for those who follow many runs.

One folder a hospital and one for all of them together, so that TensorBoard draws a quantity's lines over each other.
Written at the end, with the report: rounds do not wait for it.
"""

import logging
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path

from aecnn.config import HOSPITAL_NAME
from aecnn.evaluation.report.history import History

LOGGER = logging.getLogger(__name__)

FOLDER = "tensorboard"
TOGETHER = "all hospitals"  # with a space: no hospital can have this name
_FILE, _FILE_VERSION = "events.out.tfevents.run", "brain.Event:2"
_QUANTITIES = ("macro_auroc", "bce", "mse")


def add_events(history: History, run_folder: Path) -> None:
    """Writes the event files where the extra ``tensorboard`` is installed; a failure is a warning and stops nobody."""
    try:
        if find_spec("tensorboard") is not None:
            write_events(history, run_folder)
    except Exception as error:  # noqa: BLE001 - an extra that fails in whatever way ends no run
        LOGGER.warning(
            "%s: no curves for TensorBoard (%s: %s); what was there may be older. The report has them all",
            run_folder / FOLDER,
            type(error).__name__,
            error,
        )


def write_events(history: History, run_folder: Path) -> Path:
    """Writes ``tensorboard/`` into a run folder, in the place of what was there, and gives its path.

    The same history gives the same bytes, and no file names the machine.
    """
    by_line = defaultdict(list)
    for line, tag, round_number, value in scalars(history):
        by_line[line].append((tag, round_number, value))
    target = run_folder / FOLDER
    with tempfile.TemporaryDirectory(dir=run_folder, prefix=".tensorboard-") as unfinished:
        whole = Path(unfinished, FOLDER)
        whole.mkdir()
        names = _folder_names(line for line in by_line if line is not None)
        for line, points in by_line.items():
            folder = whole / names[line]
            folder.mkdir()
            _write_points(folder / _FILE, points, wall_time=_started_at(history))
        shutil.rmtree(target, ignore_errors=True)
        whole.rename(target)
    return target


def _write_points(path: Path, points: Sequence[tuple[str, int, float]], *, wall_time: float) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=wall_time, file_version=_FILE_VERSION).SerializeToString())
        for tag, round_number, value in points:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=wall_time, step=round_number, summary=summary).SerializeToString())


def _started_at(history: History) -> float:
    """Gives when the run began, in seconds since 1970; 0 where that is not known. Curves go by round, not by time."""
    try:
        return datetime.fromisoformat(history.start.started_at or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def scalars(history: History) -> Iterator[tuple[str | None, str, int, float]]:
    """Gives (whose, tag, round, value) of every figure that is defined; a hospital's, or None's: of all together."""
    for validation in history.validations:
        for whose, scores in ((None, validation), *validation.hospitals.items()):
            values = {name: getattr(scores, name) for name in _QUANTITIES}
            yield from _known(whose, "validation", validation.round, values)
        yield from _known(None, "validation_auroc", validation.round, validation.findings)
    for trained in history.rounds:
        means = {"bce": trained.mean("bce"), "mse": trained.mean("mse"), "seconds": trained.seconds}
        yield from _known(None, "training", trained.round, means)
        for whose, training in trained.hospitals.items():
            of_one = {"bce": training.bce, "mse": training.mse, "seconds": training.seconds}
            yield from _known(whose, "training", trained.round, of_one)
    for test in history.tests:
        yield from _known(None, "test", test.round, {"macro_auroc": test.macro_auroc})
    for whose, round_number, spent in history.costs:
        if spent.steps:
            yield from _known(whose, "privacy", round_number, {"epsilon": spent.epsilon})


def _known(
    whose: str | None, group: str, round_number: int, values: dict[str, float | None]
) -> Iterator[tuple[str | None, str, int, float]]:
    for name, value in values.items():
        if value is not None:
            yield whose, f"{group}/{name}", round_number, value


def _folder_names(hospitals: Iterable[str]) -> dict[str | None, str]:
    """Gives each hospital, and all together, a folder's name that is its own, whatever a history calls a hospital.

    A valid name stays as it is. Another loses what could lead out of the folder and begins with "_", as no valid name
    does; where two become one, the second is numbered until it is free.
    """
    names: dict[str | None, str] = {None: TOGETHER}
    for hospital in sorted(hospitals):
        is_valid = re.fullmatch(HOSPITAL_NAME, hospital) is not None
        plain = hospital if is_valid else "_" + re.sub(r"[^A-Za-z0-9_-]", "_", hospital)[:64]
        numbered = chain([plain], (f"{plain}-{number}" for number in count(2)))
        names[hospital] = next(name for name in numbered if name not in names.values())
    return names
