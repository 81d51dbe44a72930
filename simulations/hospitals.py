"""Simulated hospitals on disk: a site file and a list of patients each, as a real hospital has."""

from pathlib import Path

import yaml

from aecnn.config import SimulationConfig
from simulations.partition import Partition

PATIENTS_FILE = "patients.txt"


def write_hospitals(config: SimulationConfig, partition: Partition, folder: Path) -> None:
    """Writes ``<hospital>/site.yaml`` and the list of its patients for each hospital of a partition."""
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
                "memory_limit_mb": max(1, config.data.memory_limit_mb // len(partition)),
            },
        }
        (place / "site.yaml").write_text(yaml.safe_dump(site, sort_keys=False), encoding="utf-8")
