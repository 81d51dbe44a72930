"""``aecnn-simulate partition``: from a dataset on disk to the three files, and the table on the screen."""

import logging
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aecnn.config import DatasetConfig, PartitionConfig, ScannerConfig, Split
from aecnn.console import say
from aecnn.data.manifest import read_manifest
from aecnn.errors import ConfigError, FederationError, ManifestError
from server.run_folder import RunFolder
from simulations.partition import partition_patients
from simulations.partition_record import (
    PATIENTS_FILE,
    PICTURE_FILE,
    RECORD_FILE,
    HospitalRecord,
    PartitionRecord,
    record_partition,
)

log = logging.getLogger(__name__)
NUM_COMMONEST = 4  # findings shown of each hospital


def make_partition(
    dataset: DatasetConfig, config: PartitionConfig, out: Path, *, seed: int, split: Split | None
) -> PartitionRecord:
    """Shares a dataset out and writes the record into a new folder.

    Args:
        dataset: What to share out; its images are not looked for.
        config: How to share.
        out: The folder to make.
        seed: Of the draws.
        split: Which official split; None for ``train_val`` where there are lists, otherwise everything.

    Raises:
        ConfigError: The folder holds something, or cannot be made.
        ManifestError: The dataset is faulty, or cannot be shared out like that.
    """
    try:
        RunFolder.refuse_used(out)
    except FederationError as error:
        raise ConfigError("--out", [str(error)]) from error
    manifest = read_manifest(dataset, require_images=False)
    for sentence in manifest.consent_warnings:
        log.warning("%s", sentence)
    if split is None:
        split = "all" if manifest.table["split"].isna().all() else "train_val"
    if split != "all":
        manifest = manifest.of_split(split)
        if len(manifest) == 0:
            raise ManifestError(
                manifest.root, [f"has no image in the split {split!r}: add {split}_list.txt, or ask for 'all'"]
            )
    partition = partition_patients(manifest, config, seed=seed)
    record = record_partition(manifest, partition, config, seed=seed, split=split)
    try:
        folder = RunFolder.create(out)
    except FederationError as error:
        raise ConfigError("--out", [str(error)]) from error
    record.write(folder)
    return record


def show_partition(record: PartitionRecord, out: Path, console: Console) -> None:
    """Prints one row a hospital, the hash and the paths."""
    document = record.to_json()
    by = record.config.by
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("hospital", "patients", "images"):
        table.add_column(name, justify="left" if name == "hospital" else "right")
    table.add_column(
        {
            "view": "patients by view",
            "age": "patients by age",
            "sex": "patients by sex",
            "scanner": "images seen with",
        }.get(by, "commonest findings, of images")
    )
    for name, hospital in record.hospitals.items():
        table.add_row(name, f"{hospital.num_patients:,}", f"{hospital.num_images:,}", _mix(hospital, by))
    console.print(table)
    left_out = document["num_patients_left_out"]
    say(
        console,
        f"\n{document['num_images']:,} images of {document['num_patients']:,} patients ({record.split}) in "
        f"{len(record.hospitals)} hospitals" + (f"; {left_out:,} patients in none" if left_out else ""),
    )
    say(console, f"hash {record.content_hash}")
    for file in (RECORD_FILE, PATIENTS_FILE, PICTURE_FILE):
        say(console, str(out / file))


def _mix(hospital: HospitalRecord, by: str) -> str:
    if hospital.scanner is not None:
        return _scanner(hospital.scanner)
    if by in ("view", "age", "sex"):
        groups = hospital.patients_by[by]
        return "  ".join(f"{name} {count / hospital.num_patients:.0%}" for name, count in groups.items())
    commonest = sorted(hospital.positives.items(), key=lambda item: -item[1])[:NUM_COMMONEST]
    return "  ".join(f"{name} {count / hospital.num_images:.0%}" for name, count in commonest)


def _scanner(scanner: ScannerConfig) -> str:
    if scanner == ScannerConfig():
        return "as the images are"
    return (
        f"gamma {scanner.gamma:.2f}  contrast {scanner.contrast:.2f}  brightness {scanner.brightness:+.2f}  "
        f"noise {scanner.noise_std:.3f}  {scanner.resolution_factor:.2f}x coarser  border {scanner.border_fraction:.0%}"
    )
