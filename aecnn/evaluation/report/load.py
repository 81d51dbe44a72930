"""Reads a run folder; a file that is absent or damaged becomes a note on the page, never a failure."""

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aecnn.errors import FaultyInputError, PredictionsError
from aecnn.evaluation.predictions import read_predictions, read_targets
from aecnn.evaluation.report.history import History, first_fault, history_of
from aecnn.evaluation.report.scores import Alone, ModelScores

LOGGER = logging.getLogger(__name__)
REPORT_NAME = "report.html"
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Predictions:
    """Scores and targets of the same images, rows and findings aligned."""

    scores: NDArray[np.float64]  # [N, 14], NaN where not predicted
    targets: NDArray[np.float64]  # [N, 14], 0, 1 or NaN


@dataclass(frozen=True)
class Example:
    """One image, its latent code and its reconstruction."""

    image: str
    findings: tuple[str, ...]
    probabilities: dict[str, float]  # finding -> probability
    original: NDArray[np.uint8]  # [S, S]
    latent: NDArray[np.uint8]  # [S/4, S/4]
    reconstruction: NDArray[np.uint8]  # [S, S]
    heatmap: NDArray[np.uint8] | None = None  # [S, S], where the classifier looked; None where that is not known
    explained: str = ""  # the finding that it looked for


@dataclass(frozen=True)
class Run:
    """A run folder as the report needs it; None where a file is absent or unreadable."""

    folder: str  # its name
    config_text: str | None
    config: dict[str, Any]
    history: History
    metrics: ModelScores | None
    alone: Alone | None
    predictions: Predictions | None
    examples: tuple[Example, ...]
    files: tuple[tuple[str, int], ...]  # name, bytes
    notes: tuple[str, ...]  # what was damaged or left out


def load_run(folder: Path) -> Run:
    """Reads all the files of a run folder.

    Raises:
        FaultyInputError: Where the folder is absent or holds no file of a run.
    """
    if not folder.is_dir():
        raise FaultyInputError(folder, ["is not a folder: give the run folder that a simulation wrote"])
    known = ("config.yaml", "history.jsonl", "metrics.json")
    if not any((folder / name).is_file() for name in known):
        raise FaultyInputError(folder, [f"holds none of {', '.join(known)}: give a run folder"])
    notes: list[str] = []
    config_text = _without_folders(_read_text(folder / "config.yaml", notes))
    config = _parse_config(config_text, notes)
    history = history_of(_read_text(folder / "history.jsonl", notes) or "", notes, num_rounds=_num_rounds(config))
    metrics = _read_json(folder / "metrics.json", ModelScores, notes)
    notes += _skipped(history, metrics)
    run = Run(
        folder=folder.resolve().name,
        config_text=config_text,
        config=config,
        history=history,
        metrics=metrics,
        alone=_read_json(folder / "alone.json", Alone, notes),
        predictions=_read_predictions(folder, notes),
        examples=_read_examples(folder, notes),
        files=_list_files(folder),
        notes=tuple(notes),
    )
    for note in notes:
        LOGGER.warning("%s: %s", folder, note)
    return run


def _read_text(path: Path, notes: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return None


def _without_folders(text: str | None) -> str | None:
    """Gives a configuration without where the centre's test set lies: the report is delivered to hospitals."""
    try:
        document = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return text
    test_data = document.get("test_data") if isinstance(document, dict) else None
    if not isinstance(test_data, dict):
        return text
    for key in ("root", "cache_folder"):
        if isinstance(test_data.get(key), str):
            test_data[key] = Path(test_data[key]).name
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _parse_config(text: str | None, notes: list[str]) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text or "")
    except yaml.YAMLError:
        notes.append("config.yaml is not valid YAML; it is shown as it stands.")
        return {}
    return document if isinstance(document, dict) else {}


def _num_rounds(config: dict[str, Any]) -> int | None:
    federation = config.get("federation")
    number = federation.get("num_rounds") if isinstance(federation, dict) else None
    return number if isinstance(number, int) else None


def _read_json(path: Path, kind: type[Kind], notes: list[str]) -> Kind | None:
    text = _read_text(path, notes)
    if text is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(json.loads(text))
    except (json.JSONDecodeError, RecursionError):
        notes.append(f"{path.name} is not valid JSON; it is left out.")
    except ValidationError as error:
        notes.append(f"{path.name} is not what a run writes ({first_fault(error)}); it is left out.")
    return None


def _skipped(history: History, metrics: ModelScores | None) -> list[str]:
    """Where unreadable images were left out, and how many."""
    counts = {name: hospital.num_skipped_images or 0 for name, hospital in history.hospitals.items()}
    counts["the test split"] = (metrics.num_skipped_images or 0) if metrics else 0
    return [f"{place} left out {count} unreadable image(s)." for place, count in counts.items() if count]


def _read_predictions(folder: Path, notes: list[str]) -> Predictions | None:
    paths = [folder / "predictions.csv", folder / "targets.csv"]
    if not all(path.is_file() for path in paths):
        return None
    try:
        scored_images, scores = read_predictions(paths[0])
        images, _, targets = read_targets(paths[1])
    except PredictionsError as error:
        notes.append(f"{Path(error.subject).name}: {error.faults[0]}. The curves are left out.")
        return None
    row_of = {image: row for row, image in enumerate(scored_images)}
    shared = [(row_of[image], row) for row, image in enumerate(images) if image in row_of]
    if len(shared) < max(len(scored_images), len(images)):
        notes.append(
            f"predictions.csv has {len(scored_images):,} images and targets.csv {len(images):,}; "
            f"the curves are drawn from the {len(shared):,} they share."
        )
    rows = np.array(shared, dtype=np.intp).reshape(-1, 2)
    return Predictions(scores=scores[rows[:, 0]], targets=targets[rows[:, 1]])


def _read_examples(folder: Path, notes: list[str]) -> tuple[Example, ...]:
    arrays_path, texts_path = folder / "examples.npz", folder / "examples.json"
    if not arrays_path.is_file():
        return ()
    try:
        with np.load(arrays_path, allow_pickle=False) as archive:
            stacks = [archive[name] for name in ("original", "latent", "reconstruction")]
            heatmaps = archive.get("heatmap")
        texts = TypeAdapter(list[dict[str, Any]]).validate_json(texts_path.read_bytes())
        return _pair_examples(stacks, heatmaps, texts)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        notes.append(f"examples.npz and examples.json cannot be read together ({type(error).__name__}).")
        return ()


def _pair_examples(
    stacks: Sequence[NDArray[Any]], heatmaps: NDArray[Any] | None, texts: Sequence[dict[str, Any]]
) -> tuple[Example, ...]:
    if any(stack.dtype != np.uint8 or stack.ndim != 3 for stack in stacks):
        raise ValueError("expected three stacks of 8-bit images")
    if {len(stack) for stack in stacks} != {len(texts)} or stacks[0].shape != stacks[2].shape:
        raise ValueError("the stacks differ in length or size")
    if heatmaps is not None and (heatmaps.dtype != np.uint8 or heatmaps.shape != stacks[0].shape):
        raise ValueError("the heatmaps are not those of the images")
    return tuple(
        Example(
            image=str(text["image"]),
            findings=tuple(str(finding) for finding in text.get("findings", ())),
            probabilities={str(name): float(value) for name, value in text.get("probabilities", {}).items()},
            original=stacks[0][row],
            latent=stacks[1][row],
            reconstruction=stacks[2][row],
            heatmap=None if heatmaps is None else heatmaps[row],
            explained=str(text.get("explained", "")),
        )
        for row, text in enumerate(texts)
    )


def _list_files(folder: Path) -> tuple[tuple[str, int], ...]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return tuple((path.name, path.stat().st_size) for path in paths if path.name != REPORT_NAME)
