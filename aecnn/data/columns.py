"""What the cells of a ChestX-ray14 table mean, a whole column at a time.

The official releases and the Kaggle sample write the same things differently: patients as ``13`` or ``00000013``, ages
as ``57`` or ``057Y``, ``013M``, ``001D``.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.data.tables import shown
from aecnn.errors import UnknownFindingError
from aecnn.findings import FINDINGS, NO_FINDING, NUM_FINDINGS, finding_index, nearest_hint

MAX_AGE_YEARS = 120.0
AGE_BANDS = {"0-17": 0, "18-39": 18, "40-59": 40, "60-79": 60, "80+": 80}  # band: first year

_YEARS_PER_UNIT = {"": 1.0, "Y": 1.0, "M": 1.0 / 12.0, "W": 7.0 / 365.25, "D": 1.0 / 365.25}
_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}

RowFaults = list[tuple[int, str]]  # (row in the file, what is wrong and what to do)


def image_faults(names: pd.Series, rows: npt.NDArray[np.int64], *, below: bool = False) -> RowFaults:
    """Lists the rows whose image is not named, is no file name, or is named in an earlier row.

    Args:
        names: [N] file names.
        rows: [N] their rows in the file.
        below: Whether names may have folders in them, such as ``p10/s1/x.png``; never a way out such as ``../x.png``.
    """
    empty = (names == "").to_numpy(dtype=bool)
    parts = r"(?:^|/)\.{0,2}(?:/|$)|\\|\x00" if below else r"[/\\\x00]|^\.{1,2}$"
    not_plain = names.str.contains(parts, regex=True).to_numpy(dtype=bool) & ~empty
    kind = (
        "a file below the folder of images: give its path from there, with /"
        if below
        else "a plain file name: remove the folder"
    )
    faults = [(int(row), "no image is given: fill in its file name") for row in rows[empty]]
    faults += [
        (int(row), f"image {shown(name)} is not {kind}")
        for row, name in zip(rows[not_plain], names[not_plain], strict=True)
    ]
    again = names.duplicated().to_numpy(dtype=bool) & ~empty
    if again.any():
        first = dict(zip(names[::-1], rows[::-1], strict=True))
        faults += [
            (int(row), f"image {shown(name)} is already in row {first[name]}: remove one of them")
            for row, name in zip(rows[again], names[again], strict=True)
        ]
    return faults


def canonical_patients(cells: pd.Series) -> pd.Series:
    """Gives patient ids in one spelling: numbers without leading zeros, all else as it is.

    The official table writes patient ``13``, the Kaggle sample ``00000013``. Two spellings of one patient must not
    become two patients, of whom one could be in training and one in validation.
    """
    return _each_spelling(cells, _without_leading_zeros)


def targets_of(cells: pd.Series, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], RowFaults]:
    """Gives the findings of cells such as ``Mass|Nodule`` or ``No Finding``.

    Args:
        cells: [N] findings separated by ``|``.
        rows: [N] their rows in the file.

    Returns:
        [N, 14] targets, 0 or 1, and NaN for what was not understood of faulty cells; and the faults.
    """
    codes, spellings = pd.factorize(cells.to_numpy(dtype=object))  # some 840 spellings in the full table
    by_spelling = np.zeros((len(spellings), NUM_FINDINGS), dtype=np.float32)
    faults: RowFaults = []
    for code, spelling in enumerate(spellings):
        indices, problems = _parse_findings(str(spelling))
        if problems:
            by_spelling[code] = np.nan
            faults += [(int(row), problem) for row in rows[codes == code] for problem in problems]
        by_spelling[code, indices] = 1.0
    return by_spelling[codes], faults


def ages_years(cells: pd.Series, *, warnings: list[str]) -> pd.Series:
    """Gives ages in years; unreadable ones and those above `MAX_AGE_YEARS` become NaN, with a counted warning."""
    years = _each_spelling(cells, _years)
    _warn_of_unknown(cells, years, what=f"ages that are not between 0 and {MAX_AGE_YEARS:.0f} years", warnings=warnings)
    return years


def age_bands(years: pd.Series) -> pd.Series:
    """Gives the band of `AGE_BANDS` of each age, in order; missing where the age is."""
    return pd.Series(pd.cut(years, [*AGE_BANDS.values(), np.inf], right=False, labels=list(AGE_BANDS)))


def sexes(cells: pd.Series, *, warnings: list[str]) -> pd.Series:
    """Gives ``F`` or ``M``; any other spelling becomes missing, with a counted warning."""
    known = _each_spelling(cells, _sexes)
    _warn_of_unknown(cells, known, what="sexes other than F and M", warnings=warnings)
    return known


def views(cells: pd.Series) -> pd.Series:
    """Gives view positions in capitals, missing where the cell is empty."""
    return _each_spelling(cells, lambda spellings: spellings.str.upper().where(spellings != ""))


def _each_spelling(cells: pd.Series, interpret: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """Interprets each different cell once: a column of 112,120 ages has fewer than a hundred."""
    codes, spellings = pd.factorize(cells)
    return interpret(pd.Series(spellings, dtype=str)).take(codes).reset_index(drop=True)


def _without_leading_zeros(ids: pd.Series) -> pd.Series:
    stripped = ids.str.lstrip("0")
    stripped = stripped.where((stripped != "") | (ids == ""), "0")
    return ids.where(~ids.str.fullmatch(r"[0-9]+").astype(bool), stripped)


def _years(cells: pd.Series) -> pd.Series:
    parts = cells.str.upper().str.extract(r"^([0-9]{1,6}(?:\.[0-9]{1,9})?)([YMWD]?)$")
    years = parts[0].astype(float) * parts[1].map(_YEARS_PER_UNIT).astype(float)
    return years.where(years <= MAX_AGE_YEARS)


def _sexes(cells: pd.Series) -> pd.Series:
    capitals = cells.str.upper()
    return capitals.map(_SEXES).astype(str).where(capitals.isin(list(_SEXES)))


def _warn_of_unknown(cells: pd.Series, values: pd.Series, *, what: str, warnings: list[str]) -> None:
    unknown = values.isna() & (cells != "")
    if unknown.any():
        examples = ", ".join(shown(cell) for cell in sorted(cells[unknown].unique())[:3])
        warnings.append(f"{int(unknown.sum())} {what} are treated as unknown (for example {examples})")


def _parse_findings(cell: str) -> tuple[list[int], list[str]]:
    """The indices of the findings in one cell, and what is wrong with it."""
    indices: list[int] = []
    problems: list[str] = []
    names = [name.strip() for name in cell.split("|")]
    if not any(names):
        return [], [f"no finding is given: write {NO_FINDING!r} where there is none"]
    for name in names:
        try:
            if name.lower() != NO_FINDING.lower():
                indices.append(finding_index(name))
        except UnknownFindingError:
            hint = nearest_hint(name, (*FINDINGS, NO_FINDING)) or f"; known are {', '.join(FINDINGS)}"
            problems.append(f"unknown finding {shown(name)}{hint}")
    if len(indices) + len(problems) not in (0, len(names)):
        problems.append(f"{shown(cell)} says {NO_FINDING!r} beside a finding: keep one of the two")
    return indices, problems
