"""What is wrong with a dataset's tables, without looking at a picture."""

import re

import numpy as np
import pandas as pd

from aecnn.config import DatasetConfig
from aecnn.data.check.outcome import Outcome, outcome_of_faults
from aecnn.data.consent import withdrawn_patients
from aecnn.data.layout import LISTS
from aecnn.data.manifest import Manifest, Parsed
from aecnn.data.tables import shown

_OFFICIAL_NAME = r"^0*([0-9]+)_[0-9]{3}\.(?:png|jpe?g|dcm)$"  # 00000013_005.png is of patient 13


def check_tables(parsed: Parsed, dataset: DatasetConfig) -> list[Outcome]:
    """Checks rows, patients and splits.

    Args:
        parsed: Of the dataset; with its manifest.
        dataset: Where the lists of withdrawn patients are.
    """
    manifest = parsed.manifest
    if manifest is None:
        return [outcome_of_faults("table", "Table", parsed.table_faults, if_none="")]
    own_warnings = tuple(sentence for sentence in manifest.warnings if sentence not in manifest.consent_warnings)
    return [
        outcome_of_faults("table", "Table", parsed.table_faults, if_none=f"{len(manifest):,} rows, each in order"),
        Outcome(
            check="cells",
            title="Ages, sexes, columns",
            status="warn" if own_warnings else "pass",
            summary="something was not understood, and is treated as unknown" if own_warnings else "all was understood",
            details=own_warnings,
        ),
        _check_splits(parsed, manifest),
        _check_patient_ids(manifest.table),
        _check_views(manifest.table, dataset),
        _check_consent(manifest, dataset),
    ]


def _check_splits(parsed: Parsed, manifest: Manifest) -> Outcome:
    splits = manifest.table["split"].value_counts()
    told = ", ".join(f"{splits[name]:,} {name}" for name in LISTS if name in splits)
    none = f"{told} images, no patient in both" if told else "no official split: all images may train"
    return outcome_of_faults("splits", "Splits", parsed.split_faults, if_none=none)


def _check_patient_ids(table: pd.DataFrame) -> Outcome:
    """Compares the patient with the one in an official file name (00000013_005.png is of patient 13)."""
    named = table["image"].str.extract(_OFFICIAL_NAME, expand=False, flags=re.IGNORECASE)
    odd = np.flatnonzero((named.notna() & (named != table["patient"])).to_numpy(dtype=bool))
    cells = table.iloc[odd]
    details = tuple(
        f"image {shown(image)} is of patient {shown(patient)}: one of the two is wrong"
        for image, patient in zip(cells["image"], cells["patient"], strict=True)
    )
    told = f"{int(named.notna().sum()):,} file names carry a patient, each the table's"
    return Outcome(
        check="patient-ids",
        title="Patients in file names",
        status="warn" if details else "pass",
        summary=f"{len(details):,} file names carry another patient than the table"
        if details
        else told if named.notna().any() else "file names carry no patient",
        details=details,
    )  # fmt: skip


def _check_views(table: pd.DataFrame, dataset: DatasetConfig) -> Outcome:
    """Looks for views that the model was not made for, as far as the table tells."""
    views = table["view"].value_counts()
    others = views[~views.index.isin([view.upper() for view in dataset.files.dicom_views])]
    told = ", ".join(f"{count:,} {view}" for view, count in views.items())
    return Outcome(
        check="views",
        title="View positions",
        status="warn" if len(others) else "pass",
        summary=f"{others.sum():,} images are of other views than {' and '.join(dataset.files.dicom_views)}: "
        "take their rows out"
        if len(others)
        else told or "the table tells no view",
        details=tuple(f"{count:,} images are {shown(str(view))}" for view, count in others.items()),
    )


def _check_consent(manifest: Manifest, dataset: DatasetConfig) -> Outcome:
    num_listed = len(withdrawn_patients(dataset))
    listed = "1 patient" if num_listed == 1 else f"{num_listed:,} patients"
    told = f"{listed} listed, {len(manifest.withdrawn_images):,} of their images left out"
    return Outcome(
        check="withdrawn",
        title="Withdrawn patients",
        status="warn" if manifest.consent_warnings else "pass",
        summary=told if num_listed else "no list of withdrawn patients, or an empty one",
        details=manifest.consent_warnings,
    )
