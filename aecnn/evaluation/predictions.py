"""Tables of predictions and of targets, as CSV, so that predictions made anywhere can be scored.

A predictions table holds ``Image Index`` and one column a finding (probabilities or logits, any order, all or some);
a targets table holds ``Image Index``, ``Patient ID`` and one column a finding with 1, 0 or nothing (not labelled).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aecnn.errors import PredictionsError, UnknownFindingError
from aecnn.evaluation.auroc import Floats
from aecnn.evaluation.metrics import Metrics, score
from aecnn.findings import FINDINGS, NUM_FINDINGS, finding_index

IMAGE_COLUMN = "Image Index"
PATIENT_COLUMN = "Patient ID"
_NAMED = 3  # examples named in a fault


def write_predictions(path: Path, images: Sequence[str], probabilities: Floats) -> None:
    """Writes a predictions table; `probabilities` is [N, F]."""
    table = pd.DataFrame(np.asarray(probabilities, dtype=np.float64), columns=list(FINDINGS))
    table.insert(0, IMAGE_COLUMN, list(images))
    table.to_csv(path, index=False, float_format="%.7g")


def write_targets(path: Path, images: Sequence[str], patients: Sequence[str], targets: Floats) -> None:
    """Writes a targets table; `targets` is [N, F] in {0, 1, NaN}."""
    table = pd.DataFrame(targets, columns=list(FINDINGS)).astype("Int8")
    table.insert(0, IMAGE_COLUMN, list(images))
    table.insert(1, PATIENT_COLUMN, list(patients))
    table.to_csv(path, index=False)


def read_predictions(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Reads a predictions table.

    Returns:
        Image names [N] and scores [N, F] in the order of `FINDINGS`; NaN in the columns of findings not predicted.

    Raises:
        PredictionsError: With every fault found.
    """
    table = _read_csv(path, required=(IMAGE_COLUMN,))
    scores, faults = _finding_columns(table, allowed_extra=(PATIENT_COLUMN,))
    predicted = ~np.isnan(scores).all(axis=0)
    for column in np.flatnonzero(predicted):
        bad = np.flatnonzero(~np.isfinite(scores[:, column]))
        if bad.size:
            faults.append(
                f"column {FINDINGS[column]!r} has {bad.size} empty or infinite cell(s), the first in row "
                f"{bad[0] + 2}: give every image a score, or leave the column out"
            )
    if not predicted.any() and not faults:
        faults.append("has no column of a finding with scores in it")
    if faults:
        raise PredictionsError(path, faults)
    return table[IMAGE_COLUMN].tolist(), scores


def read_targets(path: Path) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Reads a targets table.

    Returns:
        Image names [N], patients [N] and targets [N, F] in {0, 1, NaN}.

    Raises:
        PredictionsError: With every fault found.
    """
    table = _read_csv(path, required=(IMAGE_COLUMN, PATIENT_COLUMN))
    targets, faults = _finding_columns(table, allowed_extra=(PATIENT_COLUMN,))
    for column in range(NUM_FINDINGS):
        odd = np.flatnonzero(~np.isnan(targets[:, column]) & ~np.isin(targets[:, column], (0.0, 1.0)))
        if odd.size:
            faults.append(
                f"column {FINDINGS[column]!r}, row {odd[0] + 2} holds {targets[odd[0], column]:g}: "
                f"use 1, 0 or an empty cell ({odd.size} such cell(s))"
            )
    if table[PATIENT_COLUMN].eq("").any():
        faults.append(f"{int(table[PATIENT_COLUMN].eq('').sum())} row(s) have no {PATIENT_COLUMN!r}")
    if faults:
        raise PredictionsError(path, faults)
    return table[IMAGE_COLUMN].tolist(), table[PATIENT_COLUMN].tolist(), targets


def score_predictions(path: Path, images: Sequence[str], patients: Sequence[str], targets: Floats) -> Metrics:
    """Scores a predictions table against the targets of a set of images.

    Predictions for other images are left out; a missing one is a fault.

    Args:
        path: The predictions table.
        images: [N] names of the images to score.
        patients: [N].
        targets: [N, F].

    Raises:
        PredictionsError: An image of the set has no prediction, or the table is faulty.
    """
    return score(scores_of(path, images), targets, patients)


def scores_of(path: Path, images: Sequence[str]) -> NDArray[np.float64]:
    """Gives what a predictions table says about some images, [N, F] in their order.

    Raises:
        PredictionsError: An image has no prediction, or the table is faulty.
    """
    predicted_images, scores = read_predictions(path)
    row_of = {image: row for row, image in enumerate(predicted_images)}
    missing = [image for image in images if image not in row_of]
    if missing:
        named = ", ".join(missing[:_NAMED])
        raise PredictionsError(
            path, [f"has no prediction for {len(missing)} of {len(images)} images to score, such as {named}"]
        )
    return scores[np.array([row_of[image] for image in images], dtype=np.intp)]


def _read_csv(path: Path, *, required: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PredictionsError(path, [f"cannot be read as a CSV table: {' '.join(str(error).split())}"]) from error
    absent = [column for column in required if column not in table.columns]
    if absent:
        raise PredictionsError(path, [f"has no column {name!r}; it has {list(table.columns)[:6]}" for name in absent])
    twice = table[IMAGE_COLUMN][table[IMAGE_COLUMN].duplicated()]
    if len(twice):
        raise PredictionsError(path, [f"names {len(twice)} image(s) more than once, such as {twice.iloc[0]!r}"])
    return table


def _finding_columns(table: pd.DataFrame, *, allowed_extra: tuple[str, ...]) -> tuple[NDArray[np.float64], list[str]]:
    """Numbers [N, F] by finding, NaN for empty cells and absent columns, and the faults met."""
    numbers, faults = np.full((len(table), NUM_FINDINGS), np.nan), []
    taken: dict[int, str] = {}
    for column in table.columns:
        if column == IMAGE_COLUMN or column in allowed_extra:
            continue
        try:
            index = finding_index(column)
        except UnknownFindingError as error:
            faults.append(f"column {column!r}: {error}")
            continue
        if index in taken:
            faults.append(f"columns {taken[index]!r} and {column!r} are the same finding: keep one")
            continue
        taken[index] = column
        values = pd.to_numeric(table[column].replace("", None), errors="coerce")
        wrong = np.flatnonzero(values.isna() & table[column].ne(""))
        if wrong.size:
            cell = table[column].iloc[wrong[0]]
            faults.append(f"column {column!r}, row {wrong[0] + 2} holds {cell!r}, which is no number")
        numbers[:, index] = values.to_numpy(dtype=np.float64)
    return numbers, faults
