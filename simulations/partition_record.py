"""What a partition leaves behind: partition.json, patients.csv and the picture partition.svg."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aecnn.config import PartitionConfig, ScannerConfig
from aecnn.data.manifest import Manifest
from aecnn.findings import FINDINGS
from server.run_folder import RunFolder
from simulations.case_mix import UNKNOWN, Trait, patients_by_trait
from simulations.partition_drawing import Bar, draw_partition
from simulations.patients_file import Partition, content_hash, patients_csv
from simulations.scanners import draw_scanners

TRAITS: tuple[Trait, ...] = ("labels", "view", "age", "sex")

RECORD_FILE = "partition.json"
PATIENTS_FILE = "patients.csv"
PICTURE_FILE = "partition.svg"


@dataclass(frozen=True)
class HospitalRecord:
    """One hospital's counts.

    Attributes:
        num_patients: Its patients.
        num_images: Their images.
        positives: Images with each finding.
        num_without_finding: Images known to have none of the findings that are labelled.
        images_by_view: Images of each view.
        patients_by: Patients of each group, by trait (see `patients_by_trait`).
        scanner: Its shift, None but for `by: scanner`.
    """

    num_patients: int
    num_images: int
    positives: dict[str, int]
    num_without_finding: int
    images_by_view: dict[str, int]
    patients_by: dict[str, dict[str, int]]
    scanner: ScannerConfig | None


@dataclass(frozen=True)
class PartitionRecord:
    """A partition, how it came about, and what each hospital holds.

    Attributes:
        config: How the patients were shared out.
        seed: Of the draws.
        dataset: What was shared out.
        split: Which of its official splits.
        patients: Everyone who was shared out.
        partition: Who is where.
        hospitals: The counts.
    """

    config: PartitionConfig
    seed: int
    dataset: str
    split: str
    patients: tuple[str, ...]
    partition: Partition
    hospitals: dict[str, HospitalRecord]

    @property
    def content_hash(self) -> str:
        """SHA-256 of patients.csv."""
        return content_hash(self.partition, self.patients)

    def to_json(self) -> dict[str, Any]:
        """Gives the content of partition.json."""
        num_placed = sum(hospital.num_patients for hospital in self.hospitals.values())
        return {
            "content_hash": self.content_hash,
            "kind": self.config.by,
            "settings": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "dataset": self.dataset,
            "split": self.split,
            "num_patients": num_placed,
            "num_images": sum(hospital.num_images for hospital in self.hospitals.values()),
            "num_patients_left_out": len(self.patients) - num_placed,
            "hospitals": {
                name: {**vars(hospital), "scanner": hospital.scanner and hospital.scanner.model_dump(mode="json")}
                for name, hospital in self.hospitals.items()
            },
        }

    def write(self, folder: RunFolder) -> None:
        """Writes the three files, each whole or not at all."""
        folder.write_text(PATIENTS_FILE, patients_csv(self.partition, self.patients))
        folder.write_text(PICTURE_FILE, draw_partition(self._bars(), title=self._title()))
        folder.write_json(RECORD_FILE, self.to_json())

    def _title(self) -> str:
        by = {"labels": "finding"}.get(self.config.by, self.config.by)
        alpha = "" if self.config.alpha is None else f", α = {self.config.alpha:g}"
        return f"{len(self.hospitals)} hospitals by {by}{alpha}, seed {self.seed}"

    def _bars(self) -> dict[str, Bar]:
        trait = self.config.by if self.config.by in ("view", "age", "sex") else None
        return {
            name: Bar(
                num_patients=hospital.num_patients,
                num_images=hospital.num_images,
                positives=hospital.positives,
                num_without_finding=hospital.num_without_finding,
                groups=hospital.patients_by[trait] if trait else {},
            )
            for name, hospital in self.hospitals.items()
        }


def record_partition(
    manifest: Manifest, partition: Partition, config: PartitionConfig, *, seed: int, split: str
) -> PartitionRecord:
    """Counts what each hospital of a partition holds.

    Args:
        manifest: The images that were shared out.
        partition: Who is where.
        config: How they were shared out.
        seed: Of the draws.
        split: Which official split the manifest is, or all.
    """
    hospital_of = pd.Series({patient: name for name, own in partition.items() for patient in own}, dtype=str)
    hospital = pd.Categorical(manifest.table["patient"].map(hospital_of), categories=list(partition))  # [N]
    grouped = {trait: patients_by_trait(manifest, trait) for trait in TRAITS}
    scanners = draw_scanners(list(partition), seed=seed) if config.by == "scanner" else {}
    hospitals: dict[str, HospitalRecord] = {}
    for code, (name, own) in enumerate(partition.items()):
        rows = np.flatnonzero(hospital.codes == code)
        targets = manifest.targets[rows]
        positives = (targets == 1.0).sum(axis=0).tolist()
        hospitals[name] = HospitalRecord(
            num_patients=len(own),
            num_images=rows.size,
            positives=dict(zip(FINDINGS, positives, strict=True)),
            num_without_finding=int(manifest.has_no_finding[rows].sum()),
            images_by_view=_counts(manifest.table["view"].iloc[rows].fillna(UNKNOWN)),
            patients_by={trait: _counts(groups.loc[own]) for trait, groups in grouped.items()},
            scanner=scanners.get(name),
        )
    return PartitionRecord(
        config=config,
        seed=seed,
        dataset=str(manifest.root),
        split=split,
        patients=manifest.patients,
        partition=partition,
        hospitals=hospitals,
    )


def _counts(values: pd.Series) -> dict[str, int]:
    """How often each value occurs: categories in their order, with those that do not occur; others by the alphabet."""
    counts = values.value_counts(sort=False).sort_index()
    return {str(value): int(count) for value, count in counts.items()}
