"""How the figures of a model, and of two models compared, look in a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from aecnn.console import plain, say, table_of

if TYPE_CHECKING:
    from aecnn.evaluation.comparison import Comparison, Difference
    from aecnn.evaluation.metrics import Metrics, Subgroup

ATTRIBUTES = {"sex": "sex", "age": "age, years", "view": "view position", "hospital": "hospital"}


def show_metrics(metrics: "Metrics", console: Console, *, with_subgroups: bool, min_patients: int) -> None:
    """Prints the figures by finding, their means, what is undefined and why, and subgroups where asked for."""
    table = table_of("finding", "AUROC", "95 %", "AUPRC", "sens.", "ECE", "pos.", "neg.")
    for name, figures in metrics.findings.items():
        point = figures.at_specificity
        table.add_row(
            name,
            _figure(figures.auroc, 4),
            interval_text(figures.auroc_ci),
            _figure(figures.auprc, 4),
            "–" if point is None else _figure(point.sensitivity, 3),
            _figure(figures.ece, 3),
            f"{figures.num_positive:,}",
            f"{figures.num_negative:,}",
        )
    console.print(table)
    interval = "" if metrics.macro_auroc_ci is None else f" ({interval_text(metrics.macro_auroc_ci)})"
    say(
        console,
        f"\n{metrics.num_images:,} images of {metrics.num_patients:,} patients: macro AUROC "
        f"[bold]{_figure(metrics.macro_auroc, 4)}[/]{interval}, macro AUPRC {_figure(metrics.macro_auprc, 4)}, "
        f"mean ECE {_figure(metrics.ece, 3)}\nsens.: sensitivity at a specificity of 0.9; pos., neg.: images",
    )
    for sentence in _notes(metrics):
        say(console, sentence)
    if with_subgroups:
        _show_subgroups(metrics.subgroups, console, min_patients=min_patients)


def show_comparison(comparison: "Comparison", console: Console, *, name_a: str, name_b: str) -> None:
    """Prints two models' figures by finding, what B has more than A, and which differences are no chance."""
    say(console, f"A: {escape(name_a)}\nB: {escape(name_b)}\n")
    table = table_of("finding", "A", "B", "B − A", "95 %", "p", "p, Holm")
    for name, difference in comparison.findings.items():
        table.add_row(name, *_cells(difference), _p_value(comparison.p_values_holm[name]))
    if comparison.findings:
        table.add_section()
        table.add_row("macro mean", *_cells(comparison.macro), "")
    console.print(table)
    say(
        console,
        f"\n{comparison.num_images:,} images of {comparison.num_patients:,} patients. AUROC; p by DeLong's test for "
        f"paired curves, clustered by patient; Holm's correction is for {len(comparison.findings)} findings.",
    )
    if comparison.why_left_out:
        say(console, f"Not compared: {_because(comparison.why_left_out)}")


def _notes(metrics: "Metrics") -> list[str]:
    """What a reader has to know beside the figures."""
    from aecnn.evaluation.bootstrap import often_undefined

    notes = []
    if metrics.why_undefined:
        notes.append(f"Undefined, not in the means: {_because(metrics.why_undefined)}")
    if metrics.resampling is not None:
        shares = often_undefined(metrics.resampling.num_undefined, metrics.resampling.num_resamples)
        if shares:
            named = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            notes.append(f"So few patients that resamples often lack a class, read the interval with care: {named}")
    if metrics.view_baseline is not None:
        interval = metrics.view_baseline.macro_auroc_ci
        notes.append(
            f"View position alone: macro AUROC {_figure(metrics.view_baseline.macro_auroc, 4)}"
            + ("" if interval is None else f" ({interval_text(interval)})")
        )
    if metrics.reconstruction is not None:
        notes.append(
            f"Reconstruction: {metrics.reconstruction.psnr_db:.2f} dB PSNR, {metrics.reconstruction.ssim:.4f} SSIM"
        )
    return notes


def _show_subgroups(subgroups: "tuple[Subgroup, ...]", console: Console, *, min_patients: int) -> None:
    if not subgroups:
        say(console, "\nNo groups: nothing is known of sex, age, view position or hospital.")
        return
    table = table_of("group", "macro AUROC", "95 %", "findings", "ECE", "images", "patients")
    attribute = ""
    for subgroup in subgroups:
        if subgroup.attribute != attribute:
            attribute = subgroup.attribute
            table.add_section()
            table.add_row(f"[bold]{ATTRIBUTES[attribute]}[/]")
        metrics, name = subgroup.metrics, plain(f"  {subgroup.group}")
        if metrics is None:
            table.add_row(name, "–", f"under {min_patients} patients")
            continue
        table.add_row(
            name,
            _figure(metrics.macro_auroc, 4),
            interval_text(metrics.macro_auroc_ci),
            str(len(metrics.findings) - len(metrics.undefined_findings)),
            _figure(metrics.ece, 3),
            f"{metrics.num_images:,}",
            f"{metrics.num_patients:,}",
        )
    say(console, "")
    console.print(table)


def _cells(difference: "Difference") -> tuple[str, ...]:
    return (
        _figure(difference.auroc_a, 4),
        _figure(difference.auroc_b, 4),
        f"{difference.difference:+.4f}",
        "–" if difference.difference_ci is None else " to ".join(f"{end:+.3f}" for end in difference.difference_ci),
        _p_value(difference.p_value),
    )


def _because(reasons: dict[str, str]) -> str:
    """Names by reason: ``no positive image: Hernia, Fibrosis; not predicted: Mass``."""
    kinds = list(dict.fromkeys(reasons.values()))
    return "; ".join(f"{kind}: {', '.join(name for name, why in reasons.items() if why == kind)}" for kind in kinds)


def _figure(value: float, digits: int) -> str:
    return "–" if value != value else f"{value:.{digits}f}"  # NaN alone differs from itself


def interval_text(interval: Sequence[float] | None) -> str:
    """Gives the two ends of an interval, a dash where there is none."""
    return "–" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"


def _p_value(value: float) -> str:
    if value != value:
        return "–"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
