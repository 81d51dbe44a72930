"""A dataset's table as validated rows: which image, of whom, with which findings, in which split.

In the official ChestX-ray14 layout a folder holds one table (``Data_Entry_2017*.csv`` or, without it, the Kaggle
sample's ``sample_labels*.csv``, plain or gzip), the images in ``images/`` or ``images_001/images/`` …, and the two
official lists ``train_val_list.txt`` and ``test_list.txt``, or neither (Wang et al., CVPR 2017). A hospital's own table
(``labels.csv``, or as `TableConfig` maps it) has one column a finding, and its images may lie in folders below one.
Patients who withdrew their consent are left out here, so that nothing that reads a manifest ever meets them.

A row's number is its line in the file, the header being row 1, as a spreadsheet shows it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.config import DatasetConfig, Split, TableConfig
from aecnn.data.columns import ages_years, canonical_patients, image_faults, sexes, targets_of, views
from aecnn.data.consent import unknown_patients, withdrawn_patients
from aecnn.data.generic import column_spellings, require_columns, splits_of, targets_of_columns
from aecnn.data.layout import (
    find_table,
    is_official,
    path_column,
    shared_patients_faults,
    split_column,
)
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
        consent_warnings: Of `warnings`, those of the lists of withdrawn patients: whoever reads should see them.
        withdrawn_images: Images left out because their patients withdrew their consent.
    """

    root: Path
    table: pd.DataFrame
    targets: npt.NDArray[np.float32]  # [N, 14]
    warnings: tuple[str, ...] = ()
    consent_warnings: tuple[str, ...] = ()
    withdrawn_images: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients, each once, in alphabetical order."""
        return tuple(sorted(self.table["patient"].unique()))

    @property
    def has_no_finding(self) -> npt.NDArray[np.bool_]:
        """[N] Whether none of the labelled findings is in the image, and at least one is labelled."""
        return np.asarray(~(self.targets == 1).any(axis=1) & ~np.isnan(self.targets).all(axis=1))

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
        return replace(self, table=table, targets=self.targets[wanted])

    def of_patients(self, patients: Collection[str]) -> "Manifest":
        """Gives the manifest of the images of some patients, in the order of this one."""
        return self.select(self.table["patient"].isin(list(patients)).to_numpy(dtype=bool))

    def of_split(self, split: str) -> "Manifest":
        """Gives the manifest of one official split, ``train_val`` or ``test``."""
        return self.select((self.table["split"] == split).to_numpy(dtype=bool))


def read_manifest(dataset: DatasetConfig | Path, *, require_images: bool = True) -> Manifest:
    """Reads and validates a dataset, without the patients who withdrew their consent.

    Args:
        dataset: What to read. A path is a folder in one of the known layouts, or a table in it by its own path.
        require_images: Whether every row must have its file; if not, no file is looked for.

    Raises:
        ManifestError: With every fault found, each with its row.
    """
    parsed = parse_manifest(dataset, require_images=require_images)
    if parsed.manifest is None or parsed.faults:
        raise ManifestError(dataset if isinstance(dataset, Path) else dataset.root, parsed.faults)
    return parsed.manifest


def read_split(dataset: DatasetConfig | Path, split: Split, *, require_images: bool = True) -> Manifest:
    """Reads the images of one official list, or all of them.

    Raises:
        ManifestError: The dataset is faulty, or has no such list.
    """
    manifest = read_manifest(dataset, require_images=require_images)
    if split == "all":
        return manifest
    chosen = manifest.of_split(split)
    if len(chosen) == 0:
        raise ManifestError(
            manifest.root, [f"has no image in the split {split!r}: add {split}_list.txt, or evaluate the split 'all'"]
        )
    return chosen


@dataclass(frozen=True)
class Parsed:
    """As much of a dataset as could be read, and what is wrong with it; one sentence a fault.

    Attributes:
        manifest: The rows as far as they could be understood; None without a readable table.
        table_faults: Of the table and its cells.
        split_faults: Of the official lists or the split column.
        file_faults: Images that are not there, or there twice.
        mapping: Of a table of the hospital's own; None for the official layout.
    """

    manifest: Manifest | None
    table_faults: tuple[str, ...] = ()
    split_faults: tuple[str, ...] = ()
    file_faults: tuple[str, ...] = ()
    mapping: TableConfig | None = None

    @property
    def faults(self) -> list[str]:
        """All of them."""
        return [*self.table_faults, *self.split_faults, *self.file_faults]


def parse_manifest(dataset: DatasetConfig | Path, *, require_images: bool) -> Parsed:
    """Reads as much of a dataset as can be read, and lists the faults instead of raising them."""
    config = DatasetConfig(root=dataset) if isinstance(dataset, Path) else dataset
    try:
        withdrawn = withdrawn_patients(config)
        path, mapping = find_table(config.root, config.table)
        raw, mapping = _read_raw(path, mapping)
    except ManifestError as error:
        return Parsed(None, error.faults)
    root = path.parent if config.root == path else config.root
    table_faults, split_faults, file_faults = list(raw.faults), list[str](), list[str]()
    table, targets, warnings = _interpret(raw, mapping, file_name=path.name, faults=table_faults)
    places = [f"{path.name} row {row}" for row in raw.rows]
    if mapping is not None and mapping.split_column is not None:
        split_faults += shared_patients_faults(table, names=("train_val", "test"))
    else:
        table["split"] = split_column(
            root, table=table, table_name=path.name, places=places, whole=config.root != path, faults=split_faults
        )
    consent_warnings = tuple(unknown_patients(withdrawn, table["patient"]))
    stays = (~table["patient"].isin(list(withdrawn))).to_numpy(dtype=bool)
    withdrawn_images = frozenset(table["image"][~stays])
    table = table[stays].reset_index(drop=True)
    if require_images:
        places = [place for place, stay in zip(places, stays, strict=True) if stay]
        table["path"] = path_column(root, mapping, images=table["image"], places=places, faults=file_faults)
    manifest = Manifest(root, table, targets[stays], (*warnings, *consent_warnings), consent_warnings, withdrawn_images)
    return Parsed(manifest, tuple(table_faults), tuple(split_faults), tuple(file_faults), mapping)


def _read_raw(path: Path, mapping: TableConfig | None) -> tuple[RawTable, TableConfig | None]:
    """Reads a table in the official layout, or by its mapping; what is neither is read as one with default columns."""
    if mapping is None:
        raw = read_table(path, columns=_COLUMNS)
        if "findings" in raw.cells or is_official(path):
            _require_columns(raw, path)
            return raw, None
        mapping = TableConfig(file=path.name)
    raw = read_table(path, columns=column_spellings(mapping))
    require_columns(raw, mapping, path=path)
    return raw, mapping


def _require_columns(raw: RawTable, path: Path) -> None:
    missing = [heading for name, heading in _REQUIRED.items() if name not in raw.cells]
    if missing:
        raise ManifestError(path, [f"{path.name} row 1: no column {heading!r} in the header" for heading in missing])


def _interpret(
    raw: RawTable, mapping: TableConfig | None, *, file_name: str, faults: list[str]
) -> tuple[pd.DataFrame, npt.NDArray[np.float32], list[str]]:
    """Turns cells into the manifest's columns; faults of rows are added to `faults`."""
    cells = raw.cells
    warnings: list[str] = []
    absent = pd.Series([""] * len(cells), dtype=str)
    found = image_faults(cells["image"], raw.rows, below=mapping is not None)
    patients = canonical_patients(cells["patient"])
    found += [
        (int(row), "no patient is given: fill in the patient's id") for row in raw.rows[(patients == "").to_numpy()]
    ]
    splits, split_faults = splits_of(cells.get("split", absent), raw.rows)
    targets, finding_faults = (
        targets_of(cells["findings"], raw.rows)
        if mapping is None
        else targets_of_columns(raw, mapping, warnings=warnings)
    )
    found += split_faults + finding_faults
    table = pd.DataFrame(
        {
            "image": cells["image"],
            "path": pd.Series([None] * len(cells), dtype=str),
            "patient": patients,
            "age_years": ages_years(cells.get("age", absent), warnings=warnings),
            "sex": sexes(cells.get("sex", absent), warnings=warnings),
            "view": views(cells.get("view", absent)),
            "split": splits,
        }
    )
    faults += [f"{file_name} row {row}: {problem}" for row, problem in sorted(found)]
    return table, targets, [f"{file_name}: {warning}" for warning in warnings]
