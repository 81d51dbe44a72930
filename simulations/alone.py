"""The yardstick of a federation: the same hospitals, each training alone for as many local steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from aecnn.config import SimulationConfig
from aecnn.data.manifest import read_split
from aecnn.data.source import load_images
from aecnn.evaluation.auroc import macro_mean
from aecnn.evaluation.metrics import Metrics, null_if_nan, score
from aecnn.evaluation.outputs import run_model
from aecnn.model.joint import JointAECNN, build_model
from aecnn.training.device import resolve_device
from aecnn.training.loop import train_locally
from aecnn.training.privacy.promise import promise_of
from aecnn.training.seeds import derive_seed
from client.site import read_hospital, read_training_data
from server.run_folder import RunFolder


def train_each_alone(
    config: SimulationConfig, folder: RunFolder, *, on_hospital: Callable[[str, Metrics | None], None]
) -> float | None:
    """Trains every hospital alone from the federation's initial weights and scores it on the test split.

    Each trains as many rounds of as many steps on the same batches as in the federation; only the averaging is left
    out. The last round's model is scored. Writes `alone.json`.

    Args:
        config: The federation's configuration.
        folder: Its run folder, with the hospitals' site files.
        on_hospital: Called with a hospital's name before (None) and after (its figures) its training.

    Returns:
        The mean of the hospitals' macro AUROCs on the test split, None if it is undefined.
    """
    device = resolve_device("auto")
    torch.set_num_threads(config.training.num_threads)
    test = load_images(read_split(config.data, "test"), config.data, size_px=config.images.size_px)
    figures: dict[str, Metrics] = {}
    steps: set[int] = set()
    for site_file in sorted(folder.hospitals_folder.glob("*/site.yaml")):
        name = site_file.parent.name
        on_hospital(name, None)
        model, num_steps = _train_alone(config, site_file, device)
        steps.add(num_steps)
        rows = np.arange(len(test.manifest))
        outputs = run_model(
            model, test, rows, config.images, batch_size=32, device=device, crops=config.images.test_crops
        )
        patients = test.manifest.table["patient"].tolist()
        figures[name] = score(outputs.logits, test.manifest.targets, patients)
        on_hospital(name, figures[name])
    mean = macro_mean(np.array([metrics.macro_auroc for metrics in figures.values()]))
    folder.write_json(
        "alone.json",
        {
            "hospitals": {name: metrics.to_json() for name, metrics in figures.items()},
            "mean_macro_auroc": null_if_nan(mean),
            "num_steps": steps.pop() if len(steps) == 1 else None,  # epochs of unequal hospitals have no one number
        },
    )
    return null_if_nan(mean)


def _train_alone(config: SimulationConfig, site_file: Path, device: torch.device) -> tuple[JointAECNN, int]:
    hospital = read_hospital(site_file)
    data = read_training_data(hospital, config.images.size_px, config.federation.validation_fraction)
    patients = data.loaded.manifest.table["patient"].iloc[data.train_rows].nunique()
    promise = promise_of(config.plan, declared_patients=int(patients))  # the same privacy as in the federation
    model = build_model(config.model, seed=config.seed, input_size_px=config.images.input_size_px)
    num_steps = 0
    for round_number in range(1, config.federation.num_rounds + 1):
        seed = derive_seed(config.seed, hospital.config.name, round_number)
        report = train_locally(
            model, data.loaded, data.train_rows, config.plan, seed=seed, device=device, promise=promise
        )
        num_steps += report.num_steps
    return model, num_steps
