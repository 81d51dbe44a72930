"""A table of a hospital's own: one row an image, one column a finding with 1, 0 or nothing (`TableConfig`)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.config import TableConfig
from aecnn.data.columns import RowFaults
from aecnn.data.tables import RawTable, header_key, shown
from aecnn.errors import ManifestError
from aecnn.findings import FINDINGS, NUM_FINDINGS, nearest_hint

_CELLS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan}
_SPLITS = {
    "train_val": "train_val",
    "train": "train_val",
    "val": "train_val",
    "validation": "train_val",
    "test": "test",
}
_NAMED = 8  # headings named in a fault


def column_spellings(table: TableConfig) -> dict[str, tuple[str, ...]]:
    """Gives what `read_table` looks for: the manifest's names and the findings', each with its heading's letters."""
    columns = {
        "image": table.image_column,
        "patient": table.patient_column,
        "age": table.age_column,
        "sex": table.sex_column,
        "view": table.view_column,
        "split": table.split_column,
        **(table.finding_columns or {name: name for name in FINDINGS}),
    }
    return {name: (header_key(heading),) for name, heading in columns.items() if heading is not None}


def require_columns(raw: RawTable, table: TableConfig, *, path: Path) -> None:
    """Refuses a header without the columns that the mapping names, or without a single finding.

    Raises:
        ManifestError: With every missing column, the key that names it and the nearest heading.
    """
    asked = {
        "image": ("image_column", table.image_column),
        "patient": ("patient_column", table.patient_column),
        "age": ("age_column", table.age_column),
        "sex": ("sex_column", table.sex_column),
        "view": ("view_column", table.view_column),
        "split": ("split_column", table.split_column),
        **{name: (f"finding_columns.{name}", heading) for name, heading in table.finding_columns.items()},
    }
    faults = [
        f"{path.name} row 1: no column {heading!r} in the header{_hint(heading, raw.headings)} (data.table.{key})"
        for name, (key, heading) in asked.items()
        if heading is not None and name not in raw.cells
    ]
    if not faults and not any(name in raw.cells for name in FINDINGS):
        faults.append(
            f"{path.name} row 1: no column of a finding in the header ({', '.join(raw.headings[:_NAMED])}): name them "
            f"in data.table.finding_columns; the findings are {', '.join(FINDINGS)}"
        )
    if faults:
        raise ManifestError(path, faults)


def _hint(heading: str, headings: tuple[str, ...]) -> str:
    return nearest_hint(heading, headings) or f", which has {', '.join(headings[:_NAMED])}"


def targets_of_columns(
    raw: RawTable, table: TableConfig, *, warnings: list[str]
) -> tuple[npt.NDArray[np.float32], RowFaults]:
    """Gives the findings of a column each.

    Args:
        raw: Cells by `column_spellings`.
        table: Which cells mean not labelled.
        warnings: Gets a sentence where findings have no column, or a heading looks like a finding and is none.

    Returns:
        [N, 14] targets, 0 or 1, and NaN where a cell or the whole column is not labelled or faulty; and the faults.
    """
    meaning: Mapping[str, float] = _CELLS | dict.fromkeys(table.not_labelled, np.nan)
    targets = np.full((len(raw.cells), NUM_FINDINGS), np.nan, dtype=np.float32)
    faults: RowFaults = []
    for index, name in enumerate(FINDINGS):
        if name not in raw.cells:
            continue
        codes, spellings = pd.factorize(raw.cells[name].to_numpy(dtype=object))
        targets[:, index] = np.array([meaning.get(str(s), np.nan) for s in spellings], dtype=np.float32)[codes]
        for code, spelling in enumerate(spellings):
            if str(spelling) not in meaning:
                problem = (
                    f"{name} is {shown(str(spelling))}: write 1, 0 or nothing, or add it to data.table.not_labelled"
                )
                faults += [(int(row), problem) for row in raw.rows[codes == code]]
    absent = [name for name in FINDINGS if name not in raw.cells]
    if absent:
        warnings.append(f"no column for {', '.join(absent)}: not labelled in any image")
        used = {heading for spellings in column_spellings(table).values() for heading in spellings}
        for heading in raw.headings:
            hint = nearest_hint(heading, tuple(absent))
            if hint and header_key(heading) not in used:
                warnings.append(f"column {shown(heading)} is not used{hint}")
    return targets, faults


def splits_of(cells: pd.Series, rows: npt.NDArray[np.int64]) -> tuple[pd.Series, RowFaults]:
    """Gives the split of each row, ``train_val`` or ``test``, missing where all cells are empty; and the faults.

    An empty cell beside filled ones is a fault: nobody may train on an image because its cell was forgotten.
    """
    codes, spellings = pd.factorize(cells.to_numpy(dtype=object))
    known = [_SPLITS.get(str(spelling).lower()) for spelling in spellings]
    faults = [
        (int(row), f"split {shown(str(spelling))} is none of {', '.join(_SPLITS)}")
        for code, spelling in enumerate(spellings)
        if known[code] is None and (spelling != "" or len(spellings) > 1)
        for row in rows[codes == code]
    ]
    return pd.Series(known, dtype=str).take(codes).reset_index(drop=True), faults
