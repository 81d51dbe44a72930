"""How the answer of `plan-privacy` looks: sentences, tables and a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from aecnn.commands.privacy import ADJACENCY
from aecnn.commands.privacy_outlook import Cost, Outlook, Question, RoundCost
from aecnn.console import say, table_of
from aecnn.evaluation.noised import NOISED_BINS
from aecnn.evaluation.noised_outlook import EvaluationOutlook
from aecnn.training.privacy.accounting import LARGEST_EPSILON

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROUNDS = 20  # on the screen
PRV, RDP, ACCENT = "#1f6feb", "#8b949e", "#d1242f"
WIDTH_INCHES, HEIGHT_INCHES, DPI = 12.0, 3.8, 120


def show_outlook(found: Outlook, question: Question, console: Console) -> None:
    """Prints an answer; warnings go to standard error."""
    for sentence in found.warnings:
        say(Console(stderr=True), f"[yellow]warning[/] {escape(sentence)}")
    say(console, f"noise multiplier [bold]{found.noise_multiplier:.4g}[/], in units of max_grad_norm")
    if found.noise_multiplier_by_rdp is not None:
        say(console, f"  (by RDP it would be {found.noise_multiplier_by_rdp:.4g})")
    say(
        console,
        f"ε [bold]{_told(found.epsilon.prv)}[/] at δ {found.delta:.3g}, where {ADJACENCY}\n"
        f"{found.steps:,} steps; expected batch {found.expected_batch:,.1f} of {found.patients:,} patients, "
        f"each of whom is in {found.steps_of_a_patient:,.1f} steps on average\n",
    )
    table = table_of("round", "steps so far", "ε (PRV)", "ε (RDP)")
    for row in _some(found.after_rounds):
        table.add_row(str(row.round), f"{row.steps:,}", _told(row.epsilon.prv), _told(row.epsilon.rdp))
    console.print(table)
    say(console, "\nOther noise, all steps:")
    table = table_of("noise multiplier", "ε (PRV)", "ε (RDP)")
    for other in found.against_noise:
        table.add_row(f"{other.noise_multiplier:.3g}", _told(other.epsilon.prv), _told(other.epsilon.rdp))
    console.print(table)
    _show_patients(found, question, console)
    if found.evaluation is not None:
        _show_evaluation(found.evaluation, question, console)


def _show_patients(found: Outlook, question: Question, console: Console) -> None:
    say(console, "\nThe same expected batch and steps among other numbers of patients:")
    target = () if question.epsilon is None else (f"noise for ε {question.epsilon:g}",)
    table = table_of("patients", "sample rate", "δ", f"ε at noise {found.noise_multiplier:.3g}", *target)
    for row in found.against_patients:
        noise = () if row.noise_multiplier is None else (f"{row.noise_multiplier:.3g}",)
        cells = (f"{row.patients:,}", f"{row.sample_rate:.4g}", f"{row.delta:.2g}", _told(row.epsilon.prv), *noise)
        table.add_row(*cells)
    console.print(table)


def _show_evaluation(found: EvaluationOutlook, question: Question, console: Console) -> None:
    worth = (
        f"an AUROC is off by about ±{found.auroc_error:.3f} (one standard deviation; "
        "of H such hospitals together by √H less)"
        if found.auroc_error is not None
        else f"no AUROC can be told: a class needs {found.fewest_images:,.0f} images, here or in all hospitals' sum "
        "times √hospitals"
    )
    say(
        console,
        f"\nNoised validation histograms: {found.evaluations} of them, noise multiplier {found.noise_multiplier:.3g} "
        f"each, {NOISED_BINS} bins.\nFor a finding in {question.prevalence:.3g} of the images "
        f"({found.positives:,.1f} of {question.validation_patients:,}, one a patient), {worth}.",
    )


def _some(rounds: tuple[RoundCost, ...]) -> list[RoundCost]:
    """All rounds where they are few, and otherwise some of them, with the first and the last."""
    if len(rounds) <= MOST_ROUNDS:
        return list(rounds)
    last = len(rounds) - 1
    return [rounds[round(last * place / (MOST_ROUNDS - 1))] for place in range(MOST_ROUNDS)]


def _told(epsilon: float | None) -> str:
    return (
        f"over {LARGEST_EPSILON:,.0f}" if epsilon is None else f"{epsilon:.2f}" if epsilon >= 0.1 else f"{epsilon:.3f}"
    )


def draw_outlook(found: Outlook, path: Path) -> None:
    """Draws what a plan costs into a file, whose ending says its kind."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    over_rounds, against_noise, against_patients = figure.subplots(1, 3)
    rounds = [0, *(row.round for row in found.after_rounds)]
    _lines(over_rounds, rounds, [None, *(row.epsilon for row in found.after_rounds)])
    over_rounds.set(xlabel="round", title=f"{found.steps:,} steps, noise {found.noise_multiplier:.3g}")
    over_rounds.set_ylim(bottom=0.0)
    noise = [row.noise_multiplier for row in found.against_noise]
    _lines(against_noise, noise, [row.epsilon for row in found.against_noise])
    against_noise.axvline(found.noise_multiplier, color=ACCENT, linewidth=0.8, linestyle=":")
    against_noise.set(xlabel="noise multiplier", title="other noise", yscale="log")
    patients = [row.patients for row in found.against_patients]
    _lines(against_patients, patients, [row.epsilon for row in found.against_patients])
    against_patients.axvline(found.patients, color=ACCENT, linewidth=0.8, linestyle=":")
    title = f"other numbers of patients, batch {found.expected_batch:,.0f}"
    against_patients.set(xlabel="patients", title=title, xscale="log", yscale="log")
    against_patients.set_xticks(patients, [f"{count:,}" for count in patients])
    against_patients.minorticks_off()
    for axes in (against_noise, against_patients):
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in (over_rounds, against_noise, against_patients):
        axes.set_ylabel(f"ε at δ {found.delta:.2g}" if axes is not against_patients else "ε")
        axes.grid(visible=True, alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    over_rounds.legend(frameon=False)
    figure.savefig(path)


def _lines(axes: "Axes", places: Iterable[float], costs: Iterable[Cost | None]) -> None:
    """Draws both accountants; a cost that they cannot tell is a gap."""
    places, known = list(places), list(costs)
    for label, colour, values in (
        ("PRV", PRV, [0.0 if cost is None else cost.prv for cost in known]),
        ("RDP", RDP, [0.0 if cost is None else cost.rdp for cost in known]),
    ):
        heights = [float("nan") if value is None else value for value in values]
        axes.plot(places, heights, color=colour, label=label, marker="o", markersize=2.5, linewidth=1.4)
