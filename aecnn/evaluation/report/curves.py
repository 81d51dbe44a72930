"""The report's drawings: learning curves, federated against alone, and who holds which finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from aecnn.evaluation.report.figures import ACCENT, HAIRLINE, INK, MUTED, PAPER, draw
from aecnn.evaluation.report.history import History
from aecnn.evaluation.report.scores import Alone
from aecnn.findings import FINDINGS

LONGEST_NAME = 22  # letters of a hospital's name beside a drawing


@dataclass(frozen=True)
class Line:
    """One line of a learning curve; rounds where it is undefined are left open."""

    points: tuple[tuple[int, float | None], ...]  # (round, value)
    colour: str
    is_main: bool = False
    is_dashed: bool = False


def learning_curves(history: History, colours: dict[str, str]) -> list[tuple[str, Markup]]:
    """Gives (title, drawing) of the validation AUROC, the BCE and the MSE by round; empty without any value."""
    titles = {"macro_auroc": "Validation macro AUROC", "bce": "Binary cross-entropy", "mse": "Mean squared error"}
    drawings = []
    for quantity, title in titles.items():
        lines = _lines(history, quantity, colours)
        if any(value is not None for line in lines for _, value in line.points):
            released = history.end.released_round if history.end and quantity == "macro_auroc" else None
            paint = partial(_paint_lines, lines=lines, released_round=released)
            description = f"{title} by round"
            drawings.append(
                (title, draw(f"curve-{quantity}", width_px=290, height_px=215, description=description, paint=paint))
            )
    return drawings


def privacy_curve(history: History, colours: dict[str, str]) -> Markup | None:
    """Draws what each hospital's patients have spent after each round; None where nothing is known."""
    lines = []
    for hospital, colour in colours.items():
        spent = {number: of_one.epsilon for name, number, of_one in history.costs if name == hospital and of_one.steps}
        lines.append(Line(tuple(sorted(spent.items())), colour))
    if not any(value is not None for line in lines for _, value in line.points):
        return None
    paint = partial(_paint_lines, lines=lines, released_round=None)
    return draw("curve-epsilon", width_px=380, height_px=230, description="Epsilon by round and hospital", paint=paint)


def _lines(history: History, quantity: str, colours: dict[str, str]) -> list[Line]:
    """AUROC is of the validation parts, hospital by hospital; the losses set training beside validation."""
    lines = []
    events = history.validations if quantity == "macro_auroc" else history.rounds
    for hospital, colour in colours.items():
        points = [(e.round, getattr(e.hospitals[hospital], quantity)) for e in events if hospital in e.hospitals]
        lines.append(Line(tuple(points), colour, is_dashed=quantity != "macro_auroc"))
    if quantity != "macro_auroc":
        lines.append(Line(tuple((r.round, r.mean(quantity)) for r in history.rounds), INK, is_dashed=True))
    validation = tuple((event.round, getattr(event, quantity)) for event in history.validations)
    return [*lines, Line(validation, ACCENT, is_main=True)]


def _paint_lines(axes: Axes, *, lines: Sequence[Line], released_round: int | None) -> None:
    for line in lines:
        rounds = [number for number, _ in line.points]
        values = [np.nan if value is None else value for _, value in line.points]
        axes.plot(
            rounds,
            values,
            color=line.colour,
            linewidth=2.4 if line.is_main else 1.2,
            linestyle=(0, (4, 2.5)) if line.is_dashed else "-",
            marker="o",
            markersize=(4.5 if line.is_main else 2.5) if len(rounds) < 20 else 0,  # many rounds: the line says it
            markeredgewidth=0,
        )
        if line.is_main and released_round in rounds:
            value = values[rounds.index(released_round)]
            axes.plot([released_round], [value], "o", markersize=9, color=PAPER, mec=ACCENT, mew=2.2)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(visible=False, axis="x")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.04, y=0.10)


def alone_drawing(alone: Alone, federated_auroc: float, colours: dict[str, str]) -> Markup | None:
    """Draws each hospital's own model as a dot, and its distance to the federation's line."""
    scores = [(name, model.macro_auroc) for name, model in alone.hospitals.items()]
    rows = [(name, score, colours.get(name, MUTED)) for name, score in scores if score is not None]
    if alone.mean_macro_auroc is not None:
        rows.append(("mean of the hospitals", alone.mean_macro_auroc, INK))
    if not rows:
        return None
    height_px = 62 + 30 * len(rows)
    description = "Macro AUROC of each hospital's own model beside the federation's"
    paint = partial(_paint_alone, rows=rows, federated_auroc=federated_auroc)
    return draw("alone", width_px=620, height_px=height_px, description=description, paint=paint)


def _paint_alone(axes: Axes, *, rows: Sequence[tuple[str, float, str]], federated_auroc: float) -> None:
    axes.axvline(federated_auroc, color=ACCENT, linewidth=2.0)
    for place, (_, score, colour) in enumerate(rows):
        axes.plot(
            [score, federated_auroc], [place, place], color=HAIRLINE, linewidth=5, solid_capstyle="butt", zorder=0
        )
        axes.plot([score], [place], "o", color=colour, markersize=9, markeredgewidth=0)
        is_left = score <= federated_auroc
        axes.annotate(
            f"{score:.3f}",
            (score, place),
            xytext=(-9 if is_left else 9, 0),
            textcoords="offset points",
            ha="right" if is_left else "left",
            va="center",
        )
    axes.set_yticks(range(len(rows)))
    for label in axes.set_yticklabels([_short(name) for name, _, _ in rows]):
        label.set_parse_math(False)  # a name may hold a dollar sign
        label.set_color(INK)
    reach = [federated_auroc, *[score for _, score, _ in rows]]
    pad = max(0.01, 0.14 * (max(reach) - min(reach)))
    axes.set(xlim=(min(reach) - 1.6 * pad, max(reach) + pad), ylim=(len(rows) - 0.5, -0.9))
    axes.annotate(
        f"federated {federated_auroc:.3f}",
        (federated_auroc, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6, -1),
        textcoords="offset points",
        ha="right",
        va="top",
        color=ACCENT,
        weight="bold",
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("macro AUROC, same test images")


def partition_drawing(history: History, colours: dict[str, str]) -> Markup | None:
    """Draws the training images with each finding, stacked by hospital; None where nothing is known."""
    counts = {name: history.counts(name).positives for name in colours}
    if not any(counts.values()):
        return None
    paint = partial(_paint_partition, counts=counts, colours=colours)
    description = "Training images with each finding, stacked by hospital"
    return draw("partition", width_px=470, height_px=400, description=description, paint=paint)


def _paint_partition(axes: Axes, *, counts: dict[str, dict[str, int]], colours: dict[str, str]) -> None:
    places = np.arange(len(FINDINGS))
    left = np.zeros(len(FINDINGS))
    for hospital, positives in counts.items():
        width = np.array([positives.get(finding, 0) for finding in FINDINGS], dtype=np.float64)
        axes.barh(places, width, left=left, height=0.68, color=colours[hospital], edgecolor=PAPER, linewidth=0.6)
        left += width
    for place, total in zip(places, left, strict=True):
        axes.annotate(
            f"{total:,.0f}", (total, place), xytext=(5, 0), textcoords="offset points", va="center", color=MUTED
        )
    axes.set_yticks(places, [finding.replace("_", " ") for finding in FINDINGS], color=INK)
    axes.set(ylim=(len(FINDINGS) - 0.4, -0.6), xlim=(0, max(1.0, left.max() * 1.08)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("training images with the finding")


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
