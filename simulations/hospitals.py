"""Simulated hospitals on disk: a site file and a list of patients each, as a real hospital has."""

from pathlib import Path

import yaml

from aecnn.config import SimulationConfig
from aecnn.data.manifest import read_manifest
from simulations.partition import Partition, partition_patients

PATIENTS_FILE = "patients.txt"


def write_hospitals(config: SimulationConfig, folder: Path) -> Partition:
    """Shares the dataset's training patients out and writes ``<hospital>/site.yaml`` and its patients.

    Raises:
        ManifestError: The dataset is faulty or has too few patients.
    """
    manifest = read_manifest(config.data.root)
    manifest = manifest.select((manifest.table["split"] != "test").to_numpy(dtype=bool))
    partition = partition_patients(manifest, config.partition, seed=config.seed)
    for name, patients in partition.items():
        place = folder / name
        place.mkdir(parents=True)
        (place / PATIENTS_FILE).write_text("\n".join(patients) + "\n", encoding="utf-8")
        site = {
            "name": name,
            "validation_key": f"simulated-{config.seed}",
            "data": {
                "root": str(config.data.root),
                "patients_file": PATIENTS_FILE,
                "on_unreadable": config.data.on_unreadable,
            },
        }
        (place / "site.yaml").write_text(yaml.safe_dump(site, sort_keys=False), encoding="utf-8")
    return partition
