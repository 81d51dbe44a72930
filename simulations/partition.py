"""One dataset as several hospitals. A patient is never in two of them."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from aecnn.config import HOSPITAL_NAME, PartitionConfig
from aecnn.data.columns import canonical_patients
from aecnn.data.manifest import Manifest
from aecnn.errors import ManifestError
from aecnn.training.seeds import derive_seed

Partition = dict[str, list[str]]  # hospital → its patients, both sorted


def partition_patients(manifest: Manifest, config: PartitionConfig, *, seed: int) -> Partition:
    """Gives each hospital's patients.

    Args:
        manifest: The images to share out; test images should be left out before.
        config: How to share.
        seed: Decides who goes where, for the random kinds.

    Raises:
        ManifestError: There are fewer patients than hospitals, or the file of `by: manifest` is faulty.
    """
    patients = sorted(set(manifest.table["patient"]))
    if config.by == "manifest":
        partition = _by_file(manifest.root, config.file, patients)
    else:
        shares = np.ones(config.num_hospitals or 0) if config.by == "equal" else np.array(config.sizes)
        partition = _by_shares(manifest.root, patients, shares / shares.sum(), seed)
    if config.max_patients is not None:
        partition = {
            name: sorted(_shuffled(own, derive_seed(seed, "max_patients", name))[: config.max_patients])
            for name, own in partition.items()
        }
    return partition


def hospital_name(index: int, count: int) -> str:
    """Gives ``hospital-1`` …, with leading zeros where there are ten or more, so that names sort as numbers."""
    return f"hospital-{index + 1:0{len(str(count))}d}"


def _by_shares(
    root: Path, patients: list[str], shares: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int
) -> Partition:
    """Shuffles the patients and cuts them at the cumulated shares."""
    if len(patients) < shares.size:
        raise ManifestError(
            root, [f"has {len(patients)} patients for {shares.size} hospitals: ask for fewer hospitals"]
        )
    shuffled = _shuffled(patients, derive_seed(seed, "partition"))
    cuts = np.rint(np.cumsum(shares) * len(patients)).astype(int)
    starts = np.concatenate([[0], cuts[:-1]])
    partition = {
        hospital_name(index, shares.size): sorted(shuffled[start:end])
        for index, (start, end) in enumerate(zip(starts, cuts, strict=True))
    }
    empty = [name for name, own in partition.items() if not own]
    if empty:
        raise ManifestError(
            root, [f"{len(patients)} patients are too few for these shares: {', '.join(empty)} got none"]
        )
    return partition


def _by_file(root: Path, file: str, patients: list[str]) -> Partition:
    """Reads ``Patient ID,Hospital``; every patient of the dataset must be in it, once."""
    path = root / file
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ManifestError(path, [f"cannot be read as a table of patients and hospitals: {error}"]) from error
    absent = [column for column in ("Patient ID", "Hospital") if column not in table.columns]
    if absent:
        raise ManifestError(path, [f"has no column {name!r}; it has {list(table.columns)}" for name in absent])
    table["Patient ID"] = canonical_patients(table["Patient ID"])
    pairs = table[["Patient ID", "Hospital"]].drop_duplicates()
    faults = [
        f"patient {patient} is in several hospitals: {', '.join(own['Hospital'])}"
        for patient, own in pairs[pairs["Patient ID"].duplicated(keep=False)].groupby("Patient ID")
    ]
    hospital_of: Mapping[str, str] = dict(zip(pairs["Patient ID"], pairs["Hospital"], strict=True))
    faults += [f"patient {patient} has no hospital" for patient in patients if not hospital_of.get(patient)]
    faults += [
        f"hospital {name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'"
        for name in sorted(set(pairs["Hospital"]) - {""})
        if not re.match(HOSPITAL_NAME, name)
    ]
    if faults:
        raise ManifestError(path, faults)
    partition: Partition = {}
    for patient in patients:
        partition.setdefault(hospital_of[patient], []).append(patient)
    return dict(sorted(partition.items()))


def _shuffled(patients: list[str], seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(patients))
    return [patients[index] for index in order]
