"""What patient-level privacy costs a training: images a second and peak memory, without it, by loop and by hooks.

    python benchmarks/privacy_cost.py                       # ResNet-18 at 128 px, DenseNet-121 at 128 and 224 px
    python benchmarks/privacy_cost.py --device cuda:0 --batch-size 64

One step sees `--patients` images whichever way, of one patient each, and ways take turns, so that all of them meet the
machine's load. Each way of each setting runs in a process of its own, where the peak memory is how far its resident
memory (on a GPU: what PyTorch allocated) rose above the model and its images: gradients, the optimiser's state, the
layers' outputs. Medians of `--steps` steps after one
that does not count. What `uses_hooks` does by default follows from this table.

Writes benchmarks/results/privacy_cost.md.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from aecnn.config import Backbone, ModelConfig, TrainingConfig
from aecnn.findings import NUM_FINDINGS
from aecnn.model.joint import build_model
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.loop import build_optimizer
from aecnn.training.privacy.entropy import SystemEntropy
from aecnn.training.privacy.promise import Promise
from aecnn.training.privacy.step import PrivateStep
from aecnn.training.step import TrainingStep

RESULTS = Path(__file__).with_name("results") / "privacy_cost.md"
SETTINGS: tuple[tuple[Backbone, int], ...] = (("resnet18", 128), ("densenet121", 128), ("densenet121", 224))
WAYS = ("none", "loop", "hooks")


@dataclass(frozen=True)
class Load:
    """What every way is measured on."""

    patients: int
    batch_size: int
    device: str
    threads: int


def serve(link: Connection, way: str, backbone: Backbone, size_px: int, load: Load) -> None:
    """Takes a step whenever asked and answers with its seconds; at the end, with the peak memory in MB."""
    torch.set_num_threads(load.threads)
    device = torch.device(load.device)
    config = ModelConfig(backbone=backbone, normalisation="group")
    model = build_model(config, seed=0, input_size_px=size_px).to(device).train()
    images = torch.rand(load.patients, 1, size_px, size_px, generator=torch.Generator().manual_seed(0)).to(device)
    targets = torch.zeros(load.patients, NUM_FINDINGS, device=device)
    training = TrainingConfig(batch_size=load.batch_size, local_steps=1)
    optimizer = build_optimizer(model, training)
    plain = TrainingStep(model, optimizer, training, min_batch_size=1)
    rows = [np.array([patient], dtype=np.intp) for patient in range(load.patients)]
    if way != "none":
        privacy = PrivacyConfig(noise_multiplier=1.0, sample_rate=1.0, gradients=way)  # type: ignore[arg-type]
        promise = Promise(privacy, load.patients, 1e-5, 1.0, steps_per_round=1)
        private = PrivateStep(model, optimizer, training, promise, entropy=SystemEntropy())

    def step() -> None:
        if way != "none":
            private.take(rows, lambda own: (images[torch.from_numpy(own)], targets[torch.from_numpy(own)]))
        else:  # batches of the same size, each with a step of the optimiser: what training without privacy does
            for own in torch.arange(load.patients).split(load.batch_size):
                plain.take(images[own], targets[own])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    start = _memory_begins(device)
    step()
    while link.recv() == "step":
        begin = time.perf_counter()
        step()
        link.send(time.perf_counter() - begin)
    link.send(_memory_peak(device) - start)


def _memory_begins(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew from what is resident now
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _memory_peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(backbone: Backbone, size_px: int, load: Load, *, steps: int) -> dict[str, tuple[float, float]]:
    """Gives images a second (median) and peak megabytes of each way."""
    context = multiprocessing.get_context("spawn")
    links, workers = {}, []
    for way in WAYS:
        links[way], theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(theirs, way, backbone, size_px, load)))
        workers[-1].start()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(steps):
        for way in WAYS:
            links[way].send("step")
            seconds[way].append(links[way].recv())
    found = {}
    for way in WAYS:
        links[way].send("end")
        found[way] = load.patients / statistics.median(seconds[way]), links[way].recv()
    for worker in workers:
        worker.join()
    return found


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    load = Load(options.patients, options.batch_size, options.device, options.threads)
    machine = f"{os.cpu_count()} cores" if load.device == "cpu" else torch.cuda.get_device_name(load.device)
    lines = [
        "# What patient-level privacy costs",
        "",
        f"`benchmarks/privacy_cost.py --patients {load.patients} --batch-size {load.batch_size} "
        f"--steps {options.steps} --device {load.device} --threads {load.threads}`; {machine}, "
        f"torch {torch.__version__}. A step sees {load.patients} images, at most {load.batch_size} of "
        "them in memory at a time; group normalisation, Adam. "
        "Medians; memory is above that of the model and its images. `none` takes a step of the "
        "optimiser every batch, the private ways one for all patients.",
        "",
        "| model | input | way | images/s | time, to none | peak memory | memory, to none |",
        "|---|---|---|---|---|---|---|",
    ]
    for backbone, size_px in SETTINGS:
        found = measure(backbone, size_px, load, steps=options.steps)
        speed, memory = found["none"]
        for way, (images_s, peak_mb) in found.items():
            lines.append(
                f"| {backbone} | {size_px} px | {way} | {images_s:.1f} | {speed / images_s:.2f}× | {peak_mb:,.0f} MB | "
                f"{peak_mb / max(memory, 1.0):.2f}× |"
            )
            print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
