"""What lies where in a ChestX-ray14 folder: the table, the two official lists and the image files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aecnn.data.tables import read_list, shown
from aecnn.errors import ManifestError

TABLE_PATTERNS = ("Data_Entry_2017*.csv", "sample_labels*.csv")  # the first kind that is there counts
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}


def find_table(root: Path) -> Path:
    """Gives the one table of a folder, or `root` itself where it is a file.

    Raises:
        ManifestError: There is no table, or more than one of the same kind.
    """
    if root.is_file():
        return root
    if not root.is_dir():
        raise ManifestError(root, [f"there is no folder {root}: give the one that holds {TABLE_PATTERNS[0]}"])
    for pattern in TABLE_PATTERNS:
        found = sorted([*root.glob(pattern), *root.glob(f"{pattern}.gz")])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ManifestError(root, [f"holds {len(found)} tables ({names}): keep one of them, or give its path"])
        if found:
            return found[0]
    looked_for = " or ".join(TABLE_PATTERNS)
    raise ManifestError(root, [f"no table in {root}: looked for {looked_for}, each also as .gz"])


def split_column(
    root: Path, *, table: pd.DataFrame, table_name: str, places: Sequence[str], faults: list[str]
) -> pd.Series:
    """Gives the official split of each row by the two lists; missing where the folder has no lists.

    Args:
        root: The folder.
        table: [N] rows with the columns ``image`` and ``patient``.
        table_name: The table's file name, for the faults.
        places: [N] where each row comes from, for the faults.
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
        for line, name in entries[~entries.isin(images)].items():
            faults.append(f"{entries.name} line {line}: image {shown(name)} is not in {table_name}: remove it")
    first, second = (entries.name for entries in listed.values())
    for index in np.flatnonzero(masks["train_val"] & masks["test"]).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is in both {first} and {second}: keep one")
    for index in np.flatnonzero(~(masks["train_val"] | masks["test"])).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is neither in {first} nor in {second}: add it")
    shared = patients_in_several_splits(table.assign(split=splits))
    if shared:
        count = f"{len(shared)} patients have" if len(shared) > 1 else "1 patient has"
        who = ", ".join(shown(patient) for patient in shared)
        faults.append(f"{count} images in both {first} and {second}: {who}; keep each patient's images in one list")
    return splits


def patients_in_several_splits(table: pd.DataFrame) -> list[str]:
    """Gives the patients of a manifest's table that have images in both official splits, in alphabetical order."""
    num_splits = table.groupby("patient")["split"].nunique()  # missing splits do not count
    return sorted(num_splits.index[num_splits > 1])


def path_column(folder: Path, *, images: pd.Series, places: Sequence[str], faults: list[str]) -> pd.Series:
    """Gives the file of each image, found by its name in ``images/``, ``images_001/images/`` and the like.

    Args:
        folder: Where the image folders lie.
        images: [N] file names.
        places: [N] where each row comes from, for the faults.
        faults: Gets a sentence for each image that is not there, or there twice.
    """
    folders = [place for top in sorted(folder.glob("images*")) for place in (top, top / "images") if place.is_dir()]
    if not folders:
        faults.append(f"no folder of images in {folder}: looked for images/ and images_001/images/ …")
        return pd.Series([None] * len(images), dtype=str)
    files: dict[str, str] = {}
    wanted = frozenset(images)
    for place in folders:
        for name in _file_names(place, faults=faults):
            if name in wanted:
                path = str(place / name)
                if name in files:
                    faults.append(f"image {shown(name)} is both at {files[name]} and at {path}: keep one of the files")
                files[name] = path
    looked_in = ", ".join(str(place.relative_to(folder)) for place in folders)
    absent = (~images.isin(list(files))).to_numpy(dtype=bool)
    for index in np.flatnonzero(absent).tolist():
        faults.append(f"{places[index]}: image {shown(images[index])} is not in {looked_in}: add it or remove the row")
    return images.map(files).astype(str).where(~absent)


def _file_names(folder: Path, *, faults: list[str]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        faults.append(f"{folder}: cannot be read ({error.strerror or error})")
        return []


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
