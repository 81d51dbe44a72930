"""What score histograms cost in exactness: the grid of fine ones, and floored ones with 3, 5 and 10 hospitals.

The patients and findings are those of ChestX-ray14's official test list; the scores are made up: normal, higher where
the finding is there, half of their variance common to all images of a patient, brought to a spread in logits. Hospitals
get whole patients, as many each. Every figure is held against that of the scores themselves. Writes
benchmarks/results/histograms.md.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/histograms.py /data/nih_metadata [--min-patients 10]
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aecnn.data.manifest import read_split
from aecnn.evaluation.auroc import Float64s, auroc
from aecnn.evaluation.delong import patient_sums
from aecnn.evaluation.floored import findings_told, floored_histogram, patients_needed
from aecnn.evaluation.histogram import NUM_BINS, ScoreHistogram, bins_of
from aecnn.evaluation.placements import added, placement_sums
from aecnn.evaluation.pooled import PooledScores, pooled

RESULTS = Path(__file__).parent / "results" / "histograms.md"
SPREADS = (0.1, 0.3, 1.0, 2.0, 4.0, 6.0, 10.0)  # standard deviation of the scores in logits: from timid to far too sure
CENTRE = -2.5  # logits: what a rare finding's scores lie around at a spread of 1
SHARED = 0.5  # share of the scores' variance that the images of a patient have in common
OLD_BINS, OLD_LIMIT = 1024, 16.0  # the even grid that was used before
HOSPITALS = (3, 5, 10)


@dataclass(frozen=True)
class Scored:
    """Images with made-up scores: logits and targets [N, F], patients [N]."""

    logits: Float64s
    targets: Float64s
    patients: NDArray[np.int64]

    def of_patients(self, chosen: NDArray[np.int64]) -> "Scored":
        """Gives the images of some patients."""
        rows = np.isin(self.patients, chosen)
        return Scored(self.logits[rows], self.targets[rows], self.patients[rows])

    @property
    def names(self) -> list[str]:
        """Whose each image is, [N]."""
        return [str(patient) for patient in self.patients]


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--min-patients", type=int, default=10)
    options = parser.parse_args()
    manifest = read_split(options.data, "test", require_images=False)
    targets = manifest.targets.astype(np.float64)
    patients = np.unique(manifest.table["patient"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    num_patients = int(patients.max()) + 1
    rows = [
        f"# Score histograms, {len(targets):,} images × {targets.shape[1]} findings",
        "",
        f"`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/histograms.py …/{options.data.name} "
        f"--min-patients {options.min_patients}`",
        "",
        f"{num_patients:,} patients of the official test list, made-up scores; Python {platform.python_version()}.",
        "",
        *grid_table(targets, patients),
        "",
        *floored_table(scored(targets, patients, spread=1.0), min_patients=options.min_patients),
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


def scored(targets: Float64s, patients: NDArray[np.int64], *, spread: float) -> Scored:
    """Gives scores whose AUROC lies between about 0.66 and 0.87, of a spread in logits."""
    random = np.random.default_rng(17)
    of_patients = random.normal(size=(patients.max() + 1, targets.shape[1]))[patients]
    of_images = random.normal(size=targets.shape)
    effects = np.linspace(0.6, 1.6, targets.shape[1])
    unit = np.sqrt(SHARED) * of_patients + np.sqrt(1.0 - SHARED) * of_images + effects * targets
    return Scored(spread * (unit + CENTRE), targets, patients)


def grid_table(targets: Float64s, patients: NDArray[np.int64]) -> list[str]:
    """Compares AUROC from one fine histogram of all images with that of the scores, for each spread."""
    rows = [
        f"Fine: the present grid ({NUM_BINS:,} bins, even in asinh) and the one before it ({OLD_BINS:,} even bins from "
        f"−{OLD_LIMIT:.0f} to {OLD_LIMIT:.0f}). Largest over the findings, of the error of AUROC and of its guaranteed "
        "bound:",
        "",
        "| spread of the scores, logits | error | bound | error, grid before | bound, grid before |",
        "|---:|---:|---:|---:|---:|",
    ]
    for spread in SPREADS:
        images = scored(targets, patients, spread=spread)
        truth = auroc(images.logits, images.targets)
        present = PooledScores.of(ScoreHistogram.of(images.logits, images.targets))
        before = _on_old_grid(images)
        cells = [_largest_error(present, truth), float(present.auroc_error_bound().max())]
        cells += [_largest_error(before, truth), float(before.auroc_error_bound().max())]
        rows.append(f"| {spread:g} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |")
    return rows


def _on_old_grid(images: Scored) -> PooledScores:
    """The scores counted on the grid before: its bins as the first ones of the present grid."""
    width = 2.0 * OLD_LIMIT / OLD_BINS
    bins = np.clip((images.logits + OLD_LIMIT) // width, 0, OLD_BINS - 1).astype(np.int64)
    counts = np.zeros((images.targets.shape[1], 2, NUM_BINS), dtype=np.int64)
    for finding, true_class in np.ndindex(*counts.shape[:2]):
        chosen = bins[images.targets[:, finding] == true_class, finding]
        counts[finding, true_class] = np.bincount(chosen, minlength=NUM_BINS)
    return PooledScores.of(ScoreHistogram(counts))


def _largest_error(scores: PooledScores, truth: Float64s) -> float:
    return float(np.nanmax(np.abs(scores.auroc() - truth)))


def floored_table(images: Scored, *, min_patients: int) -> list[str]:
    """Compares pooled figures of fine and floored hospitals with those of the scores that were told."""
    rows = [
        f"What `floored` costs, floor {min_patients} patients, spread 1 logit. All {len(images.targets):,} images, and "
        "a tenth of the patients, shared out over the hospitals. Errors and bounds are of the images whose hospital "
        "told the finding; a standard error is of the macro mean, by patient, from the sums as "
        "they leave, beside that from the scores:",
        "",
        "| images | hospitals | mode | findings told, mean | largest error | error of the macro mean | largest bound "
        "| bound of the macro mean | standard error ÷ exact | seconds a hospital |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    everyone = np.random.default_rng(5).permutation(np.unique(images.patients))
    for chosen in (everyone, everyone[: everyone.size // 10]):
        part = images.of_patients(chosen)
        for number in HOSPITALS:
            hospitals = [part.of_patients(share) for share in np.array_split(chosen, number)]
            for is_floored in (False, True):
                cells = floored_row(hospitals, is_floored=is_floored, min_patients=min_patients)
                mode = "floored" if is_floored else "fine"
                rows.append(f"| {len(part.targets):,} | {number} | {mode} | " + " | ".join(cells) + " |")
    return rows


def floored_row(hospitals: Sequence[Scored], *, is_floored: bool, min_patients: int) -> list[str]:
    """Gives a row's figures."""
    start, histograms, told_targets = time.perf_counter(), [], []
    for hospital in hospitals:
        needed = patients_needed(min_patients, is_floored=is_floored)
        told = findings_told(hospital.targets, hospital.names, min_patients=needed)
        targets, bins = np.where(told, hospital.targets, np.nan), bins_of(hospital.logits)
        told_targets.append(targets)
        histograms.append(
            floored_histogram(bins, targets, hospital.names, min_patients=min_patients)
            if is_floored
            else ScoreHistogram.of(hospital.logits, targets)
        )
    seconds = (time.perf_counter() - start) / len(hospitals)
    scores = pooled(histograms)
    sums = added(
        placement_sums(bins_of(one.logits), targets, one.names, own=own, pooled_images=scores.placed).told(
            min_patients=min_patients
        )
        for one, targets, own in zip(hospitals, told_targets, histograms, strict=True)
    )
    logits, targets = np.concatenate([one.logits for one in hospitals]), np.concatenate(told_targets)
    told, defined = f"{np.mean([histogram.told.sum() for histogram in histograms]):.1f}", scores.is_defined
    if not defined.any():
        return [told, *["–"] * 5, f"{seconds:.2f}"]
    exact = patient_sums(logits[:, defined], targets[:, defined], [name for one in hospitals for name in one.names])
    truth, areas, bounds = auroc(logits, targets)[defined], scores.auroc()[defined], scores.auroc_error_bound()[defined]
    return [
        told,
        f"{np.abs(areas - truth).max():.1e}",
        f"{abs(areas.mean() - truth.mean()):.1e}",
        f"{bounds.max():.1e}",
        f"{bounds.mean():.1e}",
        f"{sums.macro_standard_error() / exact.macro_standard_error():.3f}",
        f"{seconds:.2f}",
    ]


if __name__ == "__main__":
    main()
