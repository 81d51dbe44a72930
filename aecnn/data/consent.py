"""Patients who withdrew their consent: left out when a dataset is read, so that nothing behind the reader sees them.

The list is a text file with one patient id a line, spelled as in the table. What follows a ``#`` does not count, nor do
blank lines. ``excluded_patients.txt`` in the dataset's folder always counts, ``data.excluded_patients`` names another
file, and both may be there.
"""

import hashlib
import os
from pathlib import Path

import pandas as pd

from aecnn.config import DatasetConfig
from aecnn.data.columns import canonical_patients
from aecnn.data.tables import read_list, shown
from aecnn.errors import ManifestError

ConsentState = tuple[tuple[str, str], ...]  # path and SHA-256 of each list

LIST_NAME = "excluded_patients.txt"
_NAMED = 5  # ids named in a warning
_NO_ID = r"[,;\t\"']"  # what a line of a table has in it, and no patient's id


def consent_lists(dataset: DatasetConfig) -> tuple[Path, ...]:
    """Gives the files that name withdrawn patients. One that the configuration names need not be there yet."""
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    named = [] if dataset.excluded_patients is None else [folder / Path(dataset.excluded_patients).expanduser()]
    always = folder / LIST_NAME
    return tuple(dict.fromkeys([*([always] if os.path.lexists(always) else []), *named]))  # a dangling link counts


def consent_state(dataset: DatasetConfig) -> ConsentState:
    """Gives what changes when a list does, so that what was read before can be dropped; they are small files."""
    state = []
    for path in consent_lists(dataset):
        try:
            state.append((os.fspath(path), hashlib.sha256(path.read_bytes()).hexdigest()))
        except OSError:
            state.append((os.fspath(path), "unreadable"))  # reading it anew then says so
    return tuple(state)


def withdrawn_patients(dataset: DatasetConfig) -> frozenset[str]:
    """Gives the patients to leave out, in the spelling of `canonical_patients`.

    Raises:
        ManifestError: A list that is named or there cannot be read, or has lines that are no ids: without it, nobody
            may be read.
    """
    withdrawn: set[str] = set()
    for path in consent_lists(dataset):
        if not path.is_file():
            raise ManifestError(
                path,
                [f"{path}: the list of withdrawn patients is missing: restore it, or mend data.excluded_patients"],
            )
        ids = read_list(path).str.replace("#.*", "", regex=True).str.strip()
        odd = ids[ids.str.contains(_NO_ID, regex=True)]
        if len(odd):
            raise ManifestError(
                path,
                [f"{path.name} line {line}: {shown(cell)} is no patient's id: write one a line, and remarks behind a #"
                 for line, cell in odd.items()],
            )  # fmt: skip
        withdrawn |= set(canonical_patients(ids[ids != ""].reset_index(drop=True)))
    return frozenset(withdrawn)


def unknown_patients(withdrawn: frozenset[str], patients: pd.Series) -> list[str]:
    """Gives a sentence where listed ids are nobody's in the table: a slip of the pen keeps a withdrawn patient in."""
    unknown = sorted(withdrawn - set(patients))
    if not unknown:
        return []
    named = ", ".join(shown(patient) for patient in unknown[:_NAMED]) + (" …" if len(unknown) > _NAMED else "")
    return [f"{len(unknown)} withdrawn patient(s) are not in the table, such as {named}: check the spelling"]
