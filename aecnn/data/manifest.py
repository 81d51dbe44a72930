"""The official ChestX-ray14 layout as validated rows: which image, of whom, with which findings, in which split.

A folder holds one table (``Data_Entry_2017*.csv`` or, without it, the Kaggle sample's ``sample_labels*.csv``, plain or
gzip), the images in ``images/`` or ``images_001/images/`` …, and the two official lists ``train_val_list.txt`` and
``test_list.txt``, or neither. Wang et al., CVPR 2017.

A row's number is its line in the file, the header being row 1, as a spreadsheet shows it.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.config import Split
from aecnn.data.columns import ages_years, canonical_patients, image_faults, sexes, targets_of, views
from aecnn.data.layout import find_table, path_column, split_column
from aecnn.data.tables import RawTable, read_table
from aecnn.errors import ManifestError

_COLUMNS = {
    "image": ("imageindex",),
    "findings": ("findinglabels",),
    "patient": ("patientid",),
    "age": ("patientage",),
    "sex": ("patientgender", "patientsex"),
    "view": ("viewposition",),
}
_REQUIRED = {"image": "Image Index", "findings": "Finding Labels", "patient": "Patient ID"}


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of a dataset, one a row, and the findings in them.

    Attributes:
        root: The folder that was read.
        table: One row an image, numbered from 0: ``image`` (file name), ``path`` (absolute, or missing where images
            were not asked for), ``patient`` (see `canonical_patients`), ``age_years`` (NaN where unknown), ``sex``
            (``F``, ``M`` or missing), ``view`` (``PA``, ``AP``, … or missing), ``split`` (``train_val``, ``test`` or
            missing where the folder has no lists).
        targets: [N, 14] 1 where the finding is there, 0 where it is not, NaN where that is not known.
        warnings: What was put right on the way, counted; one sentence a kind.
    """

    root: Path
    table: pd.DataFrame
    targets: npt.NDArray[np.float32]  # [N, 14]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients, each once, in alphabetical order."""
        return tuple(sorted(self.table["patient"].unique()))

    def select(self, rows: npt.ArrayLike) -> "Manifest":
        """Gives the manifest of some rows.

        Args:
            rows: [N] a mask, or [M] row numbers in the wanted order.
        """
        wanted = np.asarray(rows)
        if wanted.dtype == np.bool_:
            if wanted.shape != (len(self),):
                raise IndexError(f"a mask of shape {wanted.shape} for {len(self)} rows")
            wanted = np.flatnonzero(wanted)
        wanted = wanted.astype(np.int64)
        table = self.table.take(wanted).reset_index(drop=True)
        return Manifest(root=self.root, table=table, targets=self.targets[wanted], warnings=self.warnings)

    def of_patients(self, patients: Collection[str]) -> "Manifest":
        """Gives the manifest of the images of some patients, in the order of this one."""
        return self.select(self.table["patient"].isin(list(patients)).to_numpy(dtype=bool))

    def of_split(self, split: str) -> "Manifest":
        """Gives the manifest of one official split, ``train_val`` or ``test``."""
        return self.select((self.table["split"] == split).to_numpy(dtype=bool))


def read_manifest(root: Path, *, require_images: bool = True) -> Manifest:
    """Reads and validates a folder in the official layout, or a table alone by its own path (then without splits).

    Args:
        root: The folder, or a table in it; a table's images are looked for in its folder.
        require_images: Whether every row must have its file; if not, no file is looked for.

    Raises:
        ManifestError: With every fault found, each with its row.
    """
    manifest, faults = parse_manifest(root, require_images=require_images)
    if manifest is None or faults:
        raise ManifestError(root, faults)
    return manifest


def read_split(root: Path, split: Split, *, require_images: bool = True) -> Manifest:
    """Reads the images of one official list, or all of them.

    Raises:
        ManifestError: The dataset is faulty, or has no such list.
    """
    manifest = read_manifest(root, require_images=require_images)
    if split == "all":
        return manifest
    chosen = manifest.of_split(split)
    if len(chosen) == 0:
        raise ManifestError(
            root, [f"has no image in the split {split!r}: add {split}_list.txt, or evaluate the split 'all'"]
        )
    return chosen


def parse_manifest(root: Path, *, require_images: bool) -> tuple[Manifest | None, list[str]]:
    """Reads as much of a folder as can be read, and lists the faults instead of raising them.

    Returns:
        The rows as far as they could be understood (None without a readable table), and one sentence a fault.
    """
    root = Path(os.path.abspath(root.expanduser()))
    try:
        table_path = find_table(root)
        raw = read_table(table_path, columns=_COLUMNS)
        _require_columns(raw, table_path)
    except ManifestError as error:
        return None, list(error.faults)
    faults = list(raw.faults)
    table, targets, warnings = _interpret(raw, file_name=table_path.name, faults=faults)
    places = [f"{table_path.name} row {row}" for row in raw.rows]
    if root != table_path:
        table["split"] = split_column(root, table=table, table_name=table_path.name, places=places, faults=faults)
    if require_images:
        table["path"] = path_column(table_path.parent, images=table["image"], places=places, faults=faults)
    return Manifest(root=table_path.parent, table=table, targets=targets, warnings=warnings), faults


def _require_columns(raw: RawTable, path: Path) -> None:
    missing = [heading for name, heading in _REQUIRED.items() if name not in raw.cells]
    if missing:
        raise ManifestError(path, [f"{path.name} row 1: no column {heading!r} in the header" for heading in missing])


def _interpret(
    raw: RawTable, *, file_name: str, faults: list[str]
) -> tuple[pd.DataFrame, npt.NDArray[np.float32], tuple[str, ...]]:
    """Turns cells into the manifest's columns; faults of rows are added to `faults`."""
    cells = raw.cells
    warnings: list[str] = []
    absent = pd.Series([""] * len(cells), dtype=str)
    found = image_faults(cells["image"], raw.rows)
    patients = canonical_patients(cells["patient"])
    found += [(int(row), "no patient is given: fill in Patient ID") for row in raw.rows[(patients == "").to_numpy()]]
    targets, finding_faults = targets_of(cells["findings"], raw.rows)
    found += finding_faults
    table = pd.DataFrame(
        {
            "image": cells["image"],
            "path": pd.Series([None] * len(cells), dtype=str),
            "patient": patients,
            "age_years": ages_years(cells.get("age", absent), warnings=warnings),
            "sex": sexes(cells.get("sex", absent), warnings=warnings),
            "view": views(cells.get("view", absent)),
            "split": pd.Series([None] * len(cells), dtype=str),
        }
    )
    faults += [f"{file_name} row {row}: {problem}" for row, problem in sorted(found)]
    return table, targets, tuple(f"{file_name}: {warning}" for warning in warnings)
