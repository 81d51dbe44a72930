"""A small real federation for tests: phantom radiographs, simulated hospitals, the in-process grid."""

from pathlib import Path

import numpy as np

from aecnn.config import SimulationConfig

SMALL = {
    "name": "small",
    "seed": 3,
    "partition": {"by": "equal", "num_hospitals": 3},
    "federation": {"num_rounds": 2, "min_hospitals": 2, "validation_fraction": 0.25},
    "images": {"size_px": 64, "horizontal_flip": True},
    "model": {"backbone": "resnet18", "normalisation": "batch"},
    "training": {"learning_rate": 1e-3, "batch_size": 8, "local_steps": 2, "num_threads": 1},
}


def small_config(data_root: Path, **sections) -> SimulationConfig:
    """Gives a configuration of a few seconds; keyword arguments replace keys of its sections."""
    document = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    for section, changes in sections.items():
        if isinstance(changes, dict) and section in document:
            document[section] = {**document[section], **changes}
        else:
            document[section] = changes
    return SimulationConfig.model_validate({"data": {"root": str(data_root)}, **document})


def image_weighted_mean(updates):
    """The slow and obvious FedAvg of (weights, number of images): one tensor at a time, in the order given."""
    total = sum(count for _, count in updates)
    mean = {}
    for name, first in updates[0][0].items():
        exact = sum(weights[name].astype(np.float64) * count for weights, count in updates) / total
        mean[name] = (np.rint(exact) if first.dtype.kind == "i" else exact).astype(first.dtype)
    return mean


def same_weights(one, two) -> bool:
    """Whether two sets of named arrays are equal bit for bit."""
    return set(one) == set(two) and all(
        one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name]) for name in one
    )
