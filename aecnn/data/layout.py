"""What lies where in a ChestX-ray14 folder: the table, the two official lists and the image files."""

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd

from aecnn.config import TableConfig
from aecnn.data.tables import read_list, shown
from aecnn.errors import ManifestError

OFFICIAL_PATTERNS = ("Data_Entry_2017*.csv", "sample_labels*.csv")  # the first kind that is there counts
TABLE_PATTERNS = (*OFFICIAL_PATTERNS, TableConfig().file)
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}


def find_table(root: Path, table: TableConfig | None = None) -> tuple[Path, TableConfig | None]:
    """Gives the one table of a folder, or `root` itself where it is a file, and how to read it.

    Args:
        root: The folder, or a table in it.
        table: A table of the hospital's own; None: the official layout is looked for first, then a ``labels.csv``.

    Returns:
        The table's path, and its mapping; None for a table in the official layout.

    Raises:
        ManifestError: There is no table, or more than one of the same kind.
    """
    if root.is_file():
        return root, table
    if not root.is_dir():
        raise ManifestError(root, [f"there is no folder {root}: give the one that holds {TABLE_PATTERNS[0]}"])
    if table is not None:
        path = root / table.file
        if not path.is_file():
            raise ManifestError(root, [f"there is no table {path} (data.table.file): mend the name"])
        return path, table
    for pattern in TABLE_PATTERNS:
        found = sorted([*root.glob(pattern), *root.glob(f"{pattern}.gz")])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ManifestError(root, [f"holds {len(found)} tables ({names}): keep one of them, or give its path"])
        if found:
            return found[0], (None if pattern in OFFICIAL_PATTERNS else TableConfig())
    looked_for = " or ".join(TABLE_PATTERNS)
    raise ManifestError(root, [f"no table in {root}: looked for {looked_for}, each also as .gz"])


def is_official(path: Path) -> bool:
    """Says whether a table has the name of an official release or of the Kaggle sample."""
    return any(fnmatch(path.name.removesuffix(".gz"), pattern) for pattern in OFFICIAL_PATTERNS)


def split_column(
    root: Path, *, table: pd.DataFrame, table_name: str, places: Sequence[str], whole: bool, faults: list[str]
) -> pd.Series:
    """Gives the official split of each row by the two lists; missing where the folder has no lists.

    Args:
        root: The folder.
        table: [N] rows with the columns ``image`` and ``patient``.
        table_name: The table's file name, for the faults.
        places: [N] where each row comes from, for the faults.
        whole: Whether the table should name every listed image, as the folder's own does.
        faults: Gets a sentence for each contradiction.
    """
    splits = pd.Series([None] * len(table), dtype=str)
    listed = _read_lists(root, faults=faults)
    if listed is None:
        return splits
    images = table["image"]
    masks = {split: images.isin(entries).to_numpy(dtype=bool) for split, entries in listed.items()}
    for split, entries in listed.items():
        splits[masks[split]] = split
        for line, name in entries[entries.duplicated()].items():
            faults.append(f"{entries.name} line {line}: image {shown(name)} is listed again: remove it")
        for line, name in entries[~entries.isin(images)].items() if whole else ():
            faults.append(f"{entries.name} line {line}: image {shown(name)} is not in {table_name}: remove it")
    first, second = (str(entries.name) for entries in listed.values())
    for index in np.flatnonzero(masks["train_val"] & masks["test"]).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is in both {first} and {second}: keep one")
    for index in np.flatnonzero(~(masks["train_val"] | masks["test"])).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is neither in {first} nor in {second}: add it")
    faults += shared_patients_faults(table.assign(split=splits), names=(first, second))
    return splits


def shared_patients_faults(table: pd.DataFrame, *, names: tuple[str, str]) -> list[str]:
    """Gives a sentence where patients have images in both splits, whose lists are called `names`."""
    shared = patients_in_several_splits(table)
    if not shared:
        return []
    count = f"{len(shared)} patients have" if len(shared) > 1 else "1 patient has"
    who = ", ".join(shown(patient) for patient in shared)
    return [f"{count} images in both {names[0]} and {names[1]}: {who}; keep each patient's images in one of them"]


def patients_in_several_splits(table: pd.DataFrame) -> list[str]:
    """Gives the patients of a manifest's table that have images in both official splits, in alphabetical order."""
    num_splits = table.groupby("patient")["split"].nunique()  # missing splits do not count
    return sorted(num_splits.index[num_splits > 1])


def path_column(
    root: Path, table: TableConfig | None, *, images: pd.Series, places: Sequence[str], faults: list[str]
) -> pd.Series:
    """Gives the file of each image.

    Args:
        root: The dataset's folder.
        table: The mapping of a table of the hospital's own, None for the official layout.
        images: [N] file names.
        places: [N] where each row comes from, for the faults.
        faults: Gets a sentence for each image that is not there, or there twice.
    """
    folders = image_folders(root, table)
    if not folders:
        key = "" if table is None else " (data.table.images_folder)"
        looked_for = "images/ and images_001/images/ …" if table is None else table.images_folder
        faults.append(f"no folder of images in {root}: looked for {looked_for}{key}")
        return pd.Series([None] * len(images), dtype=str)
    files = image_files(root, table, images=images, faults=faults)
    looked_in = ", ".join(os.path.relpath(place, root) for place in folders)
    absent = (~images.isin(list(files))).to_numpy(dtype=bool)
    for index in np.flatnonzero(absent).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is not in {looked_in}: add it or remove the row")
    return images.map(files).astype(str).where(~absent)


def image_folders(root: Path, table: TableConfig | None) -> list[Path]:
    """Gives the folders of a dataset that hold images: ``images/``, ``images_001/images/`` …, or the mapping's one."""
    if table is not None:
        return [path for path in (root / table.images_folder,) if path.is_dir()]
    return [place for top in sorted(root.glob("images*")) for place in (top, top / "images") if place.is_dir()]


def image_files(root: Path, table: TableConfig | None, *, images: pd.Series, faults: list[str]) -> dict[str, str]:
    """Gives every file in a dataset's image folders: name → path. A mapping's images may lie in folders below its one.

    Args:
        root: The dataset's folder.
        table: The mapping of a table of the hospital's own, None for the official layout.
        images: [N] names in the table; only for these it matters whether a name is there twice.
        faults: Gets a sentence for each folder that cannot be read, and each image that is there twice.
    """
    files: dict[str, str] = {}
    wanted = frozenset(images)
    for place in image_folders(root, table):
        for name in _file_names(place, below=table is not None, faults=faults):
            path = f"{place}{os.sep}{name}"
            if name in files and name in wanted:
                faults.append(f"image {shown(name)} is both at {files[name]} and at {path}: keep one of the files")
            files[name] = path
    return files


def _file_names(folder: Path, *, below: bool, faults: list[str]) -> list[str]:
    """Files of a folder, sorted; those in folders below it with their relative path, where asked for."""
    found: list[str] = []

    def tell(error: OSError) -> None:
        faults.append(f"{error.filename}: cannot be read ({error.strerror or error})")

    for place, inner, names in os.walk(folder, onerror=tell):
        prefix = "" if place == os.fspath(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        found += [prefix + name for name in names if not name.startswith(".")]
        if not below:
            inner.clear()
    return sorted(found)


def _read_lists(root: Path, *, faults: list[str]) -> dict[str, pd.Series] | None:
    """The entries of both lists by split; None without lists, or where they cannot be used."""
    found = {split: [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
             for split, name in LISTS.items()}  # fmt: skip
    if not any(found.values()):
        return None
    for split, paths in found.items():
        if not paths:
            faults.append(f"{LISTS[split]} is missing beside the other list: add it, or remove both for no splits")
        if len(paths) > 1:
            faults.append(f"both {paths[0].name} and {paths[1].name} are there: keep one of them")
    if any(len(paths) != 1 for paths in found.values()):
        return None
    listed: dict[str, pd.Series] = {}
    for split, paths in found.items():
        try:
            listed[split] = read_list(paths[0])
        except ManifestError as error:
            faults += error.faults
    return listed if len(listed) == len(LISTS) else None
