"""How long intervals of AUROC take at ChestX-ray14's test size, and how much wider they are by patient than by image.

The patients, findings and views are those of the official test list; the scores are made up: normal, higher where the
finding is there, with a part that all images of a patient share. The naive bootstrap draws rows and scores them with
scikit-learn; few of its resamples are run, checked against ours and extrapolated. Writes
benchmarks/results/intervals.md.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/intervals.py /data/nih_metadata [--resamples 1000] [--repeats 3]
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from aecnn.data.manifest import read_split
from aecnn.evaluation.bootstrap import percentile_interval, resample
from aecnn.evaluation.delong import patient_sums

RESULTS = Path(__file__).parent / "results" / "intervals.md"
SHARED = (0.0, 0.5, 0.8)  # share of the scores' variance that the images of a patient have in common
NAIVE_RESAMPLES = 5


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    manifest = read_split(options.data, "test", require_images=False)
    targets, patients = manifest.targets.astype(np.float64), manifest.table["patient"].tolist()
    logits = made_up(targets, patients, shared=0.5)
    by_image = [str(row) for row in range(len(targets))]
    ours = timed(lambda: resample(logits, targets, patients, num_resamples=options.resamples, seed=0), options.repeats)
    fast = resample(logits, targets, patients, num_resamples=options.resamples, seed=0)
    start = time.perf_counter()
    naive = naive_resamples(logits, targets, patients, num_resamples=NAIVE_RESAMPLES)
    of_naive = (time.perf_counter() - start) / NAIVE_RESAMPLES * options.resamples
    plain = timed(lambda: patient_sums(logits, targets, by_image).standard_errors(), options.repeats)
    clustered = timed(lambda: patient_sums(logits, targets, patients).standard_errors(), options.repeats)
    interval = percentile_interval(fast.macro)
    rows = [
        f"# Intervals of AUROC, {targets.shape[0]:,} images × {targets.shape[1]} findings",
        "",
        f"`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/intervals.py …/{options.data.name} --resamples "
        f"{options.resamples} --repeats {options.repeats}`",
        "",
        f"{len(set(patients)):,} patients of the official test list, made-up scores. Median of {options.repeats}; "
        f"Python {platform.python_version()}, one thread of {os.cpu_count()} cores, which other work shared (load "
        f"{os.getloadavg()[0]:.1f} at the end).",
        "",
        "| | seconds | |",
        "|---|---:|---|",
        f"| patient bootstrap, {options.resamples:,} resamples | {ours:.2f} | as weights on once-sorted scores |",
        f"| the same, rows drawn and scored by scikit-learn | {of_naive:.0f} | extrapolated from {NAIVE_RESAMPLES}; "
        f"{of_naive / ours:.0f} times as long; largest difference "
        f"{np.abs(fast.auroc[: len(naive)] - naive).max():.1e} |",
        f"| DeLong by image | {plain:.3f} | |",
        f"| DeLong by patient (Obuchowski) | {clustered:.3f} | |",
        "",
        f"Macro AUROC by the bootstrap: {interval[0]:.4f} to {interval[1]:.4f}." if interval else "",
        "",
        *wider(targets, patients, by_image, num_resamples=options.resamples),
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


def made_up(targets: Any, patients: list[str], *, shared: float) -> Any:
    """Gives normal scores [N, F], a share of whose variance is common to all images of a patient."""
    random = np.random.default_rng(0)
    names, owner = np.unique(patients, return_inverse=True)
    of_patient = random.normal(size=(len(names), targets.shape[1]))[owner]
    return np.sqrt(shared) * of_patient + np.sqrt(1 - shared) * random.normal(size=targets.shape) + 1.2 * targets


def naive_resamples(logits: Any, targets: Any, patients: list[str], *, num_resamples: int) -> Any:
    """Draws patients, gathers their rows and scores each finding, [R, F]."""
    names = np.unique(patients)
    rows_of: dict[str, list[int]] = {name: [] for name in names}
    for row, patient in enumerate(patients):
        rows_of[patient].append(row)
    random, areas = np.random.default_rng(0), []
    for _ in range(num_resamples):
        rows = np.concatenate([rows_of[names[drawn]] for drawn in random.integers(len(names), size=len(names))])
        areas.append([roc_auc_score(targets[rows, f], logits[rows, f]) for f in range(targets.shape[1])])
    return np.array(areas)


def timed(work: Callable[[], object], repeats: int) -> float:
    """Gives the median seconds of some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def wider(targets: Any, patients: list[str], by_image: list[str], *, num_resamples: int) -> list[str]:
    """Gives a table of how much more than DeLong's error by image the error by patient is."""
    rows = [
        "How many times the standard error by image is that by patient, median over the findings (least to greatest):",
        "",
        "| share of the scores' variance common to a patient's images | DeLong by patient | bootstrap by patient |",
        "|---:|---:|---:|",
    ]
    for shared in SHARED:
        logits = made_up(targets, patients, shared=shared)
        plain = patient_sums(logits, targets, by_image).standard_errors()
        ratios = [
            patient_sums(logits, targets, patients).standard_errors() / plain,
            resample(logits, targets, patients, num_resamples=num_resamples, seed=0).auroc.std(axis=0) / plain,
        ]
        cells = [f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})" for ratio in ratios]
        rows.append(f"| {shared:.1f} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
