"""Patients who withdrew their consent: left out when a dataset is read, so that nothing behind the reader sees them.

The list is a text file with one patient id a line, spelled as in the table; blank lines and lines that start with ``#``
do not count. ``excluded_patients.txt`` in the dataset's folder always counts, ``data.excluded_patients`` names another
file, and both may be there.
"""

import os
from pathlib import Path

import pandas as pd

from aecnn.config import DatasetConfig
from aecnn.data.columns import canonical_patients
from aecnn.data.tables import read_list, shown
from aecnn.errors import ManifestError

ConsentState = tuple[tuple[str, int, int], ...]  # path, size in bytes and time of change of each list

LIST_NAME = "excluded_patients.txt"
_NAMED = 5  # ids named in a warning


def consent_lists(dataset: DatasetConfig) -> tuple[Path, ...]:
    """Gives the files that name withdrawn patients. One that the configuration names need not be there yet."""
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    named = [] if dataset.excluded_patients is None else [folder / Path(dataset.excluded_patients).expanduser()]
    always = folder / LIST_NAME
    return tuple(dict.fromkeys([*([always] if always.exists() else []), *named]))


def consent_state(dataset: DatasetConfig) -> ConsentState:
    """Gives what changes when a list does (path, size, time of change), so that what was read before can be dropped."""
    state = []
    for path in consent_lists(dataset):
        status = path.stat() if path.exists() else None
        state.append((os.fspath(path), status.st_size if status else -1, status.st_mtime_ns if status else -1))
    return tuple(state)


def withdrawn_patients(dataset: DatasetConfig) -> frozenset[str]:
    """Gives the patients to leave out, in the spelling of `canonical_patients`.

    Raises:
        ManifestError: A list that is named or there cannot be read: without it, nobody may be read.
    """
    withdrawn: set[str] = set()
    for path in consent_lists(dataset):
        if not path.is_file():
            raise ManifestError(
                path,
                [f"{path.name}: the list of withdrawn patients is missing: restore it, or mend data.excluded_patients"],
            )
        entries = read_list(path)
        withdrawn |= set(canonical_patients(entries[~entries.str.startswith("#")].reset_index(drop=True)))
    return frozenset(withdrawn)


def unknown_patients(withdrawn: frozenset[str], patients: pd.Series) -> list[str]:
    """Gives a sentence where listed ids are nobody's in the table: a slip of the pen keeps a withdrawn patient in."""
    unknown = sorted(withdrawn - set(patients))
    if not unknown:
        return []
    named = ", ".join(shown(patient) for patient in unknown[:_NAMED]) + (" …" if len(unknown) > _NAMED else "")
    return [f"{len(unknown)} withdrawn patient(s) are not in the table, such as {named}: check the spelling"]
