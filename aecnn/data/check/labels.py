"""What a hospital's tables hold and what is wrong with them, without raising and without looking at a picture."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aecnn.data.layout import LISTS, patients_in_several_splits
from aecnn.data.manifest import Manifest, parse_manifest
from aecnn.findings import FINDINGS, NO_FINDING


class SplitCounts(BaseModel):
    """How much one official split holds."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    num_patients: int


class LabelsReport(BaseModel):
    """The counts of a dataset's tables and their faults; where there are faults, counts are of what could be read.

    Attributes:
        num_images: Rows of the table.
        num_patients: Different patients.
        findings: Images with each finding, in the usual order, and with none (``No Finding``).
        splits: The official splits; empty where the folder has no lists.
        patients_in_several_splits: Patients with images in more than one split.
        faults: One sentence a fault; empty where the tables can be used.
        warnings: What was put right on reading; not part of `to_json`.
    """

    model_config = ConfigDict(frozen=True)

    num_images: int = 0
    num_patients: int = 0
    findings: dict[str, int] = {}
    splits: dict[str, SplitCounts] = {}
    patients_in_several_splits: int = 0
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON."""
        return self.model_dump(mode="json", exclude={"warnings"})


def check_labels(root: Path) -> LabelsReport:
    """Counts images, patients, findings and splits from the tables of a folder, and lists their faults.

    Args:
        root: The folder, or a table by its own path. Images need not be there.
    """
    manifest, faults = parse_manifest(root, require_images=False)
    if manifest is None:
        return LabelsReport(faults=tuple(faults))
    present = set(manifest.table["split"].dropna())
    return LabelsReport(
        num_images=len(manifest),
        num_patients=len(manifest.patients),
        findings=_count_findings(manifest),
        splits={name: _count_split(manifest.of_split(name)) for name in LISTS if name in present},
        patients_in_several_splits=len(patients_in_several_splits(manifest.table)),
        faults=tuple(faults),
        warnings=manifest.warnings,
    )


def _count_findings(manifest: Manifest) -> dict[str, int]:
    counts = {name: int((manifest.targets[:, index] == 1).sum()) for index, name in enumerate(FINDINGS)}
    return counts | {NO_FINDING: int((manifest.targets == 0).all(axis=1).sum())}


def _count_split(manifest: Manifest) -> SplitCounts:
    return SplitCounts(num_images=len(manifest), num_patients=len(manifest.patients))
