"""patients.csv: which patient is at which hospital, as one partition leaves it and another can read it."""

import csv
import hashlib
import io
import re
from collections.abc import Collection
from pathlib import Path

from aecnn.config import HOSPITAL_NAME
from aecnn.data.columns import canonical_patients
from aecnn.data.tables import read_table, shown
from aecnn.errors import ManifestError

Partition = dict[str, list[str]]  # hospital → its patients, both sorted

PATIENT, HOSPITAL = "Patient ID", "Hospital"
LEFT_OUT = "-"  # in the place of a hospital: the patient is at none of them


def patients_csv(partition: Partition, patients: Collection[str]) -> str:
    """Gives the text of patients.csv: every patient of the dataset once, in the order of their ids' characters.

    Args:
        partition: Who is where.
        patients: All that were shared out; those in no hospital are written as left out.
    """
    hospital_of = {patient: name for name, own in partition.items() for patient in own}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((PATIENT, HOSPITAL))
    writer.writerows((patient, hospital_of.get(patient, LEFT_OUT)) for patient in sorted(patients))
    return text.getvalue()


def content_hash(partition: Partition, patients: Collection[str]) -> str:
    """Gives the SHA-256 of patients.csv, the same wherever the same patients are at the same hospitals.

    ``sha256sum patients.csv`` prints it, too.
    """
    return hashlib.sha256(patients_csv(partition, patients).encode()).hexdigest()


def read_patients_file(path: Path, patients: list[str]) -> Partition:
    """Reads ``Patient ID,Hospital``; rows of patients who are not asked for are ignored.

    Args:
        path: The table.
        patients: Who must be in it, once, if only as left out.

    Raises:
        ManifestError: With every fault found.
    """
    raw = read_table(path, columns={"patient": ("patientid",), "hospital": ("hospital",)})
    absent = [heading for name, heading in (("patient", PATIENT), ("hospital", HOSPITAL)) if name not in raw.cells]
    if absent:
        raise ManifestError(path, [f"{path.name} row 1: no column {heading!r} in the header" for heading in absent])
    hospitals_of: dict[str, list[str]] = {}
    for patient, hospital in zip(canonical_patients(raw.cells["patient"]), raw.cells["hospital"], strict=True):
        known = hospitals_of.setdefault(str(patient), [])
        if hospital not in known:
            known.append(str(hospital))
    faults = [*raw.faults, *_faults(hospitals_of, patients)]
    if faults:
        raise ManifestError(path, faults)
    partition: Partition = {}
    for patient in sorted(patients):
        (hospital,) = hospitals_of[patient]
        if hospital != LEFT_OUT:
            partition.setdefault(hospital, []).append(patient)
    if not partition:
        raise ManifestError(path, [f"puts none of the dataset's {len(patients)} patients into a hospital"])
    return dict(sorted(partition.items()))


def _faults(hospitals_of: dict[str, list[str]], patients: list[str]) -> list[str]:
    faults = [
        f"patient {shown(patient)} is in several hospitals: {', '.join(names)}; keep one"
        for patient, names in hospitals_of.items()
        if len(names) > 1
    ]
    faults += [
        f"patient {shown(patient)} has no hospital: name one, or write {LEFT_OUT!r} to leave the patient out"
        for patient in patients
        if hospitals_of.get(patient, [""]) == [""]
    ]
    names = {name for known in hospitals_of.values() for name in known}
    faults += [
        f"hospital {shown(name)} cannot be a folder's name: use letters, digits, '.', '_' and '-'"
        for name in sorted(names - {"", LEFT_OUT})
        if not re.match(HOSPITAL_NAME, name)
    ]
    return faults
