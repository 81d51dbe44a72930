"""Who is in a dataset: images and patients by finding, split, sex, age band and view."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from aecnn.data.check.outcome import Outcome
from aecnn.data.columns import age_bands
from aecnn.data.layout import LISTS
from aecnn.data.manifest import Manifest
from aecnn.findings import FINDINGS, NO_FINDING

DISCLOSURE_FLOOR_PATIENTS = 10  # counts of fewer patients say something about single ones
EVALUABLE_PATIENTS = 10  # with fewer patients in one class, an AUROC says next to nothing
UNKNOWN = "unknown"


class Count(BaseModel):
    """Images, and the patients they are of."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    num_patients: int


class FindingCount(BaseModel):
    """How often a finding is there, is not, and is not labelled, in one split."""

    model_config = ConfigDict(frozen=True)

    positive: Count
    negative: Count
    not_labelled: Count


class LabelCounts(BaseModel):
    """Who is in a dataset, by finding, sex, age band and view; each in images and in patients.

    Attributes:
        splits: The official splits; empty where the dataset has none.
        findings: Split (``all``, then the official ones) → finding → counts.
        sex: ``F``, ``M``, ``unknown``.
        age: ``0-17`` …, ``unknown``.
        view: ``PA``, ``AP``, …, ``unknown``.
        images_per_patient: ``1``, ``2``, ``3–5``, … → patients and their images.
    """

    model_config = ConfigDict(frozen=True)

    splits: dict[str, Count] = {}
    findings: dict[str, dict[str, FindingCount]] = {}
    sex: dict[str, Count] = {}
    age: dict[str, Count] = {}
    view: dict[str, Count] = {}
    images_per_patient: dict[str, Count] = {}


def count_labels(manifest: Manifest) -> LabelCounts:
    """Counts a manifest's images and patients."""
    table = manifest.table
    present = set(table["split"].dropna())
    parts = {"all": manifest} | {name: manifest.of_split(name) for name in LISTS if name in present}
    return LabelCounts(
        splits={name: _count(part.table["patient"]) for name, part in parts.items() if name != "all"},
        findings={name: _count_findings(part) for name, part in parts.items()},
        sex=_count_groups(table["sex"], table["patient"]),
        age=_count_groups(age_bands(table["age_years"]), table["patient"]),
        view=_count_groups(table["view"], table["patient"]),
        images_per_patient=_count_by_number(table["patient"]),
    )


def positives(manifest: Manifest) -> dict[str, int]:
    """Gives the images with each finding, in the usual order, and with none of those labelled (``No Finding``)."""
    counts = {name: int((manifest.targets[:, index] == 1).sum()) for index, name in enumerate(FINDINGS)}
    return counts | {NO_FINDING: int(manifest.has_no_finding.sum())}


def check_counts(counts: LabelCounts, *, floor: int) -> list[Outcome]:
    """Checks whether findings are frequent enough to be evaluated, and which counts are too small to be told.

    Args:
        counts: Of the dataset.
        floor: Patients below which a count is not disclosed.
    """
    rare, small = [], []
    for split, findings in counts.findings.items():
        for name, count in findings.items():
            if count.positive.num_images + count.negative.num_images == 0:
                continue  # not labelled at all, which the table's check says once
            for kind, part in (("positive", count.positive), ("negative", count.negative)):
                if part.num_patients < EVALUABLE_PATIENTS:
                    rare.append(f"{name}, {split}: {kind} in {_patients(part)} ({part.num_images} images)")
                if 0 < part.num_patients < floor:
                    small.append(f"{name}, {split}: {kind} in {_patients(part)}")
    for group in ("sex", "age", "view"):
        for value, part in getattr(counts, group).items():
            if 0 < part.num_patients < floor:
                small.append(f"{group} {value}: {_patients(part)}")
    return [
        Outcome(
            check="evaluable",
            title="Findings to evaluate",
            status="warn" if rare else "pass",
            summary=f"{len(rare)} with fewer than {EVALUABLE_PATIENTS} patients in a class: an AUROC there says little"
            if rare
            else f"every finding has {EVALUABLE_PATIENTS} or more patients with it and without it, in every split",
            details=tuple(rare),
        ),
        Outcome(
            check="disclosure",
            title="Counts too small to tell",
            status="warn" if small else "pass",
            summary=f"{len(small)} counts of fewer than {floor} patients: withhold them when you share figures"
            if small
            else f"no count of fewer than {floor} patients",
            details=tuple(small),
        ),
    ]


def _patients(count: Count) -> str:
    return "1 patient" if count.num_patients == 1 else f"{count.num_patients:,} patients"


def _count(patients: pd.Series) -> Count:
    return Count(num_images=len(patients), num_patients=int(patients.nunique()))


def _count_groups(values: pd.Series, patients: pd.Series) -> dict[str, Count]:
    """Counts by value, the most frequent first (age bands in their order), missing values last."""
    named = values.astype(object).where(values.notna(), UNKNOWN).to_numpy(dtype=object)
    codes, names = pd.factorize(named)
    order = list(values.cat.categories) if isinstance(values.dtype, pd.CategoricalDtype) else []
    sizes = np.bincount(codes, minlength=len(names))

    def place(code: int) -> tuple[bool, int, int]:
        name = names[code]
        return name == UNKNOWN, order.index(name) if name in order else -1, -int(sizes[code])

    return {str(names[code]): _count(patients[codes == code]) for code in sorted(range(len(names)), key=place)}


def _count_by_number(patients: pd.Series) -> dict[str, Count]:
    numbers = patients.value_counts().to_numpy()
    bands = {"1": (1, 1), "2": (2, 2), "3–5": (3, 5), "6–10": (6, 10), "11–50": (11, 50), "51+": (51, None)}
    counted = {}
    for name, (low, high) in bands.items():
        inside = numbers[(numbers >= low) & (numbers <= (high or numbers.max(initial=0)))]
        if inside.size:
            counted[name] = Count(num_images=int(inside.sum()), num_patients=int(inside.size))
    return counted


def _count_findings(manifest: Manifest) -> dict[str, FindingCount]:
    codes, _ = pd.factorize(manifest.table["patient"])

    def count(rows: npt.NDArray[np.bool_]) -> Count:
        return Count(num_images=int(rows.sum()), num_patients=int(np.unique(codes[rows]).size))

    return {
        name: FindingCount(
            positive=count(column == 1), negative=count(column == 0), not_labelled=count(np.isnan(column))
        )
        for name, column in zip(FINDINGS, manifest.targets.T, strict=True)
    }
