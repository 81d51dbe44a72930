"""Tables of predictions and of targets, as CSV, so that predictions made anywhere can be scored.

A predictions table holds ``Image Index`` and one column a finding (probabilities or logits, any order, all or some);
a targets table holds ``Image Index``, ``Patient ID`` and one column a finding with 1, 0 or nothing (not labelled). It
may say more of the patients, which makes figures by group: ``Patient Sex`` (or ``Patient Gender``), ``Patient Age``,
``View Position``, ``Hospital``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aecnn.data.columns import ages_years, sexes, views
from aecnn.data.manifest import Manifest
from aecnn.errors import PredictionsError, UnknownFindingError
from aecnn.evaluation.auroc import Floats
from aecnn.evaluation.subgroups import Groups, groups_of
from aecnn.findings import FINDINGS, NUM_FINDINGS, finding_index

IMAGE_COLUMN = "Image Index"
PATIENT_COLUMN = "Patient ID"
SEX_COLUMN, AGE_COLUMN, VIEW_COLUMN, HOSPITAL_COLUMN = "Patient Sex", "Patient Age", "View Position", "Hospital"
_OF_GROUPS = (SEX_COLUMN, "Patient Gender", AGE_COLUMN, VIEW_COLUMN, HOSPITAL_COLUMN)
_NAMED = 3  # examples named in a fault


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of images to score. N images, F findings.

    Attributes:
        images: [N] names.
        patients: [N].
        targets: [N, F] in {0, 1, NaN}.
        groups: [N] each attribute's group of every image.
        warnings: What was not understood of the groups, counted; one sentence a kind.
    """

    images: list[str]
    patients: list[str]
    targets: NDArray[np.floating]
    groups: Groups
    warnings: tuple[str, ...] = ()


def labels_of(manifest: Manifest) -> Labels:
    """Gives what a manifest knows of its images."""
    table = manifest.table
    return Labels(table["image"].tolist(), table["patient"].tolist(), manifest.targets, groups_of(table))


def write_predictions(path: Path, images: Sequence[str], probabilities: Floats) -> None:
    """Writes a predictions table; `probabilities` is [N, F]."""
    table = pd.DataFrame(np.asarray(probabilities, dtype=np.float64), columns=list(FINDINGS))
    table.insert(0, IMAGE_COLUMN, list(images))
    table.to_csv(path, index=False, float_format="%.7g")


def write_targets(
    path: Path,
    images: Sequence[str],
    patients: Sequence[str],
    targets: Floats,
    *,
    described: pd.DataFrame | None = None,
) -> None:
    """Writes a targets table.

    Args:
        path: Of the CSV.
        images: [N] names.
        patients: [N].
        targets: [N, F] in {0, 1, NaN}.
        described: [N] rows with ``sex``, ``age_years`` and ``view``, as `Manifest.table` has them; without it, the
            table says nothing of groups.
    """
    table = pd.DataFrame(targets, columns=list(FINDINGS)).astype("Int8")
    table.insert(0, IMAGE_COLUMN, list(images))
    table.insert(1, PATIENT_COLUMN, list(patients))
    if described is not None:
        for column, name in ((SEX_COLUMN, "sex"), (AGE_COLUMN, "age_years"), (VIEW_COLUMN, "view")):
            table[column] = described[name].to_numpy()
    table.to_csv(path, index=False, float_format="%.6g")


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
    """Gives image names [N], patients [N] and targets [N, F] of a targets table; see `read_labels`."""
    labels = read_labels(path)
    return labels.images, labels.patients, np.asarray(labels.targets, dtype=np.float64)


def read_labels(path: Path) -> Labels:
    """Reads a targets table.

    Raises:
        PredictionsError: With every fault found.
    """
    table = _read_csv(path, required=(IMAGE_COLUMN, PATIENT_COLUMN))
    targets, faults = _finding_columns(table, allowed_extra=(PATIENT_COLUMN, *_OF_GROUPS))
    for column in range(NUM_FINDINGS):
        odd = np.flatnonzero(~np.isnan(targets[:, column]) & ~np.isin(targets[:, column], (0.0, 1.0)))
        if odd.size:
            faults.append(
                f"column {FINDINGS[column]!r}, row {odd[0] + 2} holds {targets[odd[0], column]:g}: "
                f"use 1, 0 or an empty cell ({odd.size} such cell(s))"
            )
    if table[PATIENT_COLUMN].eq("").any():
        faults.append(f"{int(table[PATIENT_COLUMN].eq('').sum())} row(s) have no {PATIENT_COLUMN!r}")
    if len(table) == 0:
        faults.append("has no row: give one for each image to score")
    if faults:
        raise PredictionsError(path, faults)
    warnings: list[str] = []
    groups = groups_of(_described(table, warnings))
    return Labels(
        table[IMAGE_COLUMN].tolist(),
        table[PATIENT_COLUMN].tolist(),
        targets,
        groups,
        tuple(f"{path.name}: {warning}" for warning in warnings),
    )


def scores_of(path: Path, images: Sequence[str]) -> NDArray[np.float64]:
    """Gives what a predictions table says about some images, [N, F] in their order; those of others are left out.

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


def _described(table: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """The columns of `groups_of` that a targets table has."""
    described: dict[str, pd.Series] = {}
    for column in table.columns:
        cells = table[column].str.strip() if column in _OF_GROUPS else None
        if cells is None:
            continue
        if column == AGE_COLUMN:
            described["age_years"] = ages_years(cells, warnings=warnings)
        elif column == VIEW_COLUMN:
            described["view"] = views(cells)
        elif column == HOSPITAL_COLUMN:
            described["hospital"] = cells.where(cells != "")
        else:
            described["sex"] = sexes(cells, warnings=warnings)
    return pd.DataFrame(described)


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
