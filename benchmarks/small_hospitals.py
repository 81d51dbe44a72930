"""What differential privacy asks of a small hospital: noise and ε against patients, batch and steps. Needs no data.

δ = min(1e-5, 1/(10·patients)), composed by PRV, one patient added or removed. Writes
benchmarks/results/small_hospitals.md and docs/pictures/privacy-small-hospitals.png.

    .venv/bin/python benchmarks/small_hospitals.py
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from aecnn.training.privacy.accounting import Mechanism, default_delta, epsilon_of, noise_for

PATIENTS = (250, 500, 1_000, 2_500, 5_000, 10_000, 25_000)
BATCHES = (64, 256)
EPSILONS = (1.0, 3.0, 8.0)
EPOCHS = 20
STEPS = (100, 400, 1_600)
NOISES = (0.6, 1.0, 2.0)
SMALL = 1_000  # patients, of the table of batches
BATCHES_OF_SMALL = (8, 16, 32, 64, 128, 256, 512)
COLOURS = ("#8250df", "#1f6feb", "#1a7f37")
RESULTS = Path(__file__).parent / "results" / "small_hospitals.md"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "privacy-small-hospitals.png"


def noise_of_epochs(patients: int, batch: int, epsilon: float) -> tuple[float, int]:
    """The noise multiplier for ε in all epochs, and the steps they have."""
    steps = math.ceil(EPOCHS * patients / batch)
    noise = noise_for(epsilon=epsilon, delta=default_delta(patients), sample_rate=batch / patients, steps=steps)
    return noise, steps


def epsilon_at(patients: int, batch: int, steps: int, noise: float) -> float:
    """ε of some steps."""
    mechanism = Mechanism(noise, batch / patients, steps)
    return epsilon_of([mechanism], delta=default_delta(patients))


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---:"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def needed() -> str:
    """Noise multiplier, and in brackets the noise on a step's mean gradient, in clips."""
    heading = ["patients", *(f"ε {epsilon:g}, batch {batch}" for epsilon in EPSILONS for batch in BATCHES)]
    rows = []
    for patients in PATIENTS:
        cells = []
        for epsilon in EPSILONS:
            for batch in BATCHES:
                if batch > patients / 2:
                    cells.append("–")
                    continue
                noise, _ = noise_of_epochs(patients, batch, epsilon)
                cells.append(f"{noise:.2f} ({noise / batch:.3f})")
        rows.append([f"{patients:,}", *cells])
    return table(heading, rows)


def spent() -> str:
    """ε at batch 64, by patients, noise and steps."""
    heading = ["patients", *(f"σ {noise:g}, {steps:,} steps" for noise in NOISES for steps in STEPS)]
    rows = [
        [f"{patients:,}", *(f"{epsilon_at(patients, 64, steps, noise):.2f}" for noise in NOISES for steps in STEPS)]
        for patients in PATIENTS
    ]
    return table(heading, rows)


def batches(epsilon: float) -> str:
    """What a larger batch does where the epochs are given: less noise on each step, and on all of them together."""
    rows = []
    for batch in BATCHES_OF_SMALL:
        noise, steps = noise_of_epochs(SMALL, batch, epsilon)
        of_all = noise / batch / math.sqrt(steps)
        rows.append([str(batch), str(steps), f"{noise:.2f}", f"{noise / batch:.4f}", f"{of_all:.5f}"])
    return table(["batch", "steps", "noise multiplier", "noise of a step's mean", "of the mean of all steps"], rows)


def draw() -> None:
    """Draws ε and noise against patients."""
    figure = Figure(figsize=(11.0, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for noise, colour in zip(NOISES, COLOURS, strict=True):
        values = [epsilon_at(patients, 64, 400, noise) for patients in PATIENTS]
        left.plot(PATIENTS, values, color=colour, marker="o", markersize=3, label=f"noise multiplier {noise:g}")
    left.set(title="ε of 400 steps, expected batch 64", ylabel="ε at δ = min(1e-5, 1/(10·patients))")
    left.axhspan(10.0, left.get_ylim()[1], color="#d1242f", alpha=0.06, linewidth=0.0)
    for epsilon, colour in zip(EPSILONS, COLOURS, strict=True):
        values = [noise_of_epochs(patients, 64, epsilon)[0] / 64 for patients in PATIENTS]
        right.plot(PATIENTS, values, color=colour, marker="o", markersize=3, label=f"ε = {epsilon:g}")
    right.set(
        title=f"noise on a step's mean gradient, {EPOCHS} epochs, batch 64",
        ylabel="standard deviation, in units of the clip",
    )
    for axes in (left, right):
        finish(axes)
    figure.savefig(PICTURE)


def finish(axes: Axes) -> None:
    """Logarithmic axes with plain numbers."""
    axes.set(xscale="log", yscale="log", xlabel="training patients of the hospital")
    axes.set_xticks(PATIENTS, [f"{patients:,}" for patients in PATIENTS], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def main() -> None:
    """Computes the tables and draws the picture."""
    text = f"""# What differential privacy asks of a small hospital

`.venv/bin/python benchmarks/small_hospitals.py`: PRV accountant, δ = min(1e-5, 1/(10·patients)), one patient added or
removed. No data and no chance are in it.

## Noise needed in {EPOCHS} epochs

Noise multiplier for ε; in brackets the noise on a step's mean gradient, in units of the clip: noise multiplier / batch.
–: half of the patients or more in every step.

{needed()}

## ε at an expected batch of 64

{spent()}

## {SMALL:,} patients, {EPOCHS} epochs, ε 8: larger batches

Noise of the mean gradient, in units of the clip: of one step, and of the mean over all steps.

{batches(8.0)}
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)
    draw()


if __name__ == "__main__":
    main()
