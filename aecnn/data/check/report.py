"""The data-quality report: every check of a dataset in one object, made on the hospital's machine to stay there."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aecnn.config import DatasetConfig
from aecnn.data.check.counts import DISCLOSURE_FLOOR_PATIENTS, LabelCounts, check_counts, count_labels, positives
from aecnn.data.check.outcome import Outcome, Status, worst
from aecnn.data.check.tables import check_tables
from aecnn.data.layout import image_files, patients_in_several_splits
from aecnn.data.manifest import Manifest, Parsed, parse_manifest
from aecnn.progress import OnProgress

MAX_EXTRA_NAMED = 50


class DataReport(BaseModel):
    """What is in a dataset and what is wrong with it; where there are faults, counts are of what could be read.

    Attributes:
        root: The dataset's folder.
        labels_only: Whether the images were left unopened.
        num_images: Rows of the table.
        num_patients: Different patients.
        findings: Images with each finding, in the usual order, and with none of those labelled (``No Finding``).
        patients_in_several_splits: How many patients have images in more than one split.
        labels: Counts by finding and split, sex, age band and view, in images and patients.
        checks: The outcome of each check.
        faults: One sentence a fault of the tables and files; empty where the dataset can be used.
        warnings: What was put right on reading.
    """

    model_config = ConfigDict(frozen=True)

    root: Path
    labels_only: bool
    num_images: int = 0
    num_patients: int = 0
    findings: dict[str, int] = {}
    patients_in_several_splits: int = 0
    labels: LabelCounts = LabelCounts()
    checks: tuple[Outcome, ...] = ()
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """The most severe outcome."""
        return worst(self.checks)

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON, the outcome first."""
        document = self.model_dump(mode="json")
        return {"status": self.status, "splits": document["labels"].pop("splits"), **document}


def check_dataset(
    dataset: DatasetConfig,
    *,
    labels_only: bool,
    floor: int = DISCLOSURE_FLOOR_PATIENTS,
    num_workers: int = 1,
    on_progress: OnProgress | None = None,
) -> DataReport:
    """Checks a dataset: tables, files, patients, radiographs and labels.

    Args:
        dataset: What to read.
        labels_only: Look at the tables alone; images need not be there.
        floor: Patients below which a count is not to be disclosed.
        num_workers: Processes that decode.
        on_progress: Called with the images opened and their number.
    """
    parsed = parse_manifest(dataset, require_images=not labels_only)
    checks = check_tables(parsed, dataset)
    manifest = parsed.manifest
    if manifest is None:
        return DataReport(root=dataset.root, labels_only=labels_only, checks=tuple(checks), faults=tuple(parsed.faults))
    if not labels_only:
        from aecnn.data.check.pictures import check_pictures

        checks.append(_check_files(parsed, manifest))
        checks += check_pictures(manifest, files=dataset.files, num_workers=num_workers, on_progress=on_progress)
    counts = count_labels(manifest)
    unreadable = next((outcome.details for outcome in checks if outcome.check == "readable"), ())
    return DataReport(
        root=manifest.root,
        labels_only=labels_only,
        num_images=len(manifest),
        num_patients=len(manifest.patients),
        findings=positives(manifest),
        patients_in_several_splits=len(patients_in_several_splits(manifest.table)),
        labels=counts,
        checks=(*checks, *check_counts(counts, floor=floor)),
        faults=(*parsed.faults, *unreadable),
        warnings=manifest.warnings,
    )


def _check_files(parsed: Parsed, manifest: Manifest) -> Outcome:
    """Missing images fail; files that no row names are only told."""
    images = manifest.table["image"]
    files = image_files(manifest.root, parsed.mapping, images=images, faults=[])
    withdrawn = len(manifest.withdrawn_images & set(files))  # their names are nobody's business any more
    extra = sorted(set(files) - set(images) - manifest.withdrawn_images)
    missing = parsed.file_faults
    notes = (
        [f"{len(missing):,} {'fault' if len(missing) == 1 else 'faults'}: mend them before joining"] if missing else []
    )
    notes += [f"{len(extra):,} files are in no row of the table, and are not used"] if extra else []
    notes += [f"{withdrawn:,} files of withdrawn patients are still there: delete them"] if withdrawn else []
    return Outcome(
        check="files",
        title="Files",
        status="fail" if missing else "warn" if notes else "pass",
        summary="; ".join(notes) or f"{len(images):,} images, and no file beside them",
        details=(*missing, *(f"{files[name]} is in no row" for name in extra[:MAX_EXTRA_NAMED])),
    )
