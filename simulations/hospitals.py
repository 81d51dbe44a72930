"""Simulated hospitals on disk: a site file and a list of patients each, as a real hospital has."""

from pathlib import Path

import yaml

from aecnn.config import DatasetConfig, SimulationConfig
from client.site import SIMULATED_POLICY
from simulations.patients_file import Partition
from simulations.scanners import draw_scanners

PATIENTS_FILE = "patients.txt"


def write_hospitals(config: SimulationConfig, partition: Partition, folder: Path) -> None:
    """Writes ``<hospital>/site.yaml`` and the list of its patients for each hospital of a partition.

    A hospital has all of the dataset's settings, an equal part of its memory, and its own scanner by `by: scanner`.
    """
    dataset = config.data.model_dump(mode="json", include=set(DatasetConfig.model_fields))
    dataset["memory_limit_mb"] = max(1, config.data.memory_limit_mb // len(partition))
    scanners = draw_scanners(list(partition), seed=config.seed) if config.partition.by == "scanner" else {}
    for name, patients in partition.items():
        place = folder / name
        place.mkdir(parents=True)
        (place / PATIENTS_FILE).write_text("\n".join(patients) + "\n", encoding="utf-8")
        scanner = {"scanner": scanners[name].model_dump(mode="json")} if name in scanners else {}
        site = {
            "name": name,
            "validation_key": f"simulated-{config.seed}",
            "data": {**dataset, "patients_file": PATIENTS_FILE, **scanner},
            "policy": SIMULATED_POLICY.model_dump(mode="json"),
        }
        (place / "site.yaml").write_text(yaml.safe_dump(site, sort_keys=False, allow_unicode=True), encoding="utf-8")
