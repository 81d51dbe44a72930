"""The centre's memory while it admits and averages a round's updates from disk, by the number of hospitals.

    python benchmarks/centre_memory.py                      # DenseNet-121 (28.2 MB), 1, 3, 10 and 30 hospitals

Each number runs in a process of its own; what is told is how far its resident memory rose above what it was with all
updates on disk and none read. Bound: the global model, the running sum in float64 (two models) and one tensor.

Writes benchmarks/results/centre_memory.md.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from aecnn.config import ModelConfig
from aecnn.model.joint import build_architecture
from aecnn.model.weights import Weights, pack_weights, weights_of
from server.admission import faults_of_values
from server.average import Update, federated_average
from server.spool import Spool

RESULTS = Path(__file__).with_name("results") / "centre_memory.md"


def moved(weights: Weights, seed: int) -> Weights:
    """Gives weights near others, as a hospital's training would."""
    random = np.random.default_rng(seed)
    return {
        name: array + random.random(array.shape, dtype=np.float32) if array.dtype == np.float32 else array
        for name, array in weights.items()
    }


def resident_mb() -> float:
    """Gives this process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(num_hospitals: int) -> tuple[float, float, float]:
    """Gives megabytes above the start, megabytes of a model, and seconds of admission and average."""
    weights = weights_of(build_architecture(ModelConfig(backbone="densenet121"), input_size_px=128))
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        packed = pack_weights(weights)
        model, model_mb = spool.put_model(packed.data), packed.nbytes / 1e6
        del packed
        updates = []
        for number in range(num_hospitals):
            name = f"hospital-{number:02d}"
            file = spool.put(name, pack_weights(moved(weights, number)).data, round_number=1)
            updates.append(Update(name, file, 100 + number))
        del weights
        # The peak that the kernel keeps starts anew from what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = resident_mb(), time.perf_counter()
        by_name = {update.hospital: update.weights for update in updates}
        if faults_of_values(by_name, model=model, max_norm_ratio=10.0).faults:
            raise RuntimeError("an update was refused")
        federated_average(updates)
        seconds = time.perf_counter() - begin
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6 - before, model_mb, seconds


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[1, 3, 10, 30])
    arguments = parser.parse_args()
    lines = [
        "# The centre's memory while admitting and averaging, DenseNet-121",
        "",
        f"`benchmarks/centre_memory.py --hospitals {' '.join(map(str, arguments.hospitals))}`; Linux, "
        f"{os.cpu_count()} cores.",
        "",
        "| hospitals | MB on disk | MB above the start | in models | seconds |",
        "|---|---|---|---|---|",
    ]
    for count in arguments.hospitals:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            above, model_mb, seconds = pool.apply(measure, (count,))
        lines.append(f"| {count} | {count * model_mb:.0f} | {above:.0f} | {above / model_mb:.1f} | {seconds:.1f} |")
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
