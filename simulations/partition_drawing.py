"""partition.svg: one bar a hospital, and in it which findings its images have; beside it, how large it is."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from aecnn.evaluation.report.figures import HAIRLINE, HOSPITALS, INK, MUTED, PAPER, POINTS_PER_INCH, STYLE
from aecnn.findings import FINDINGS, NO_FINDING

# Okabe and Ito's colours, which the colour-blind can tell apart: seven plain, then the same seven with a hatch.
_HUES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
_HATCH = "////"
_NO_FINDING = "#d4dae0"

WIDTH_PX = 980
HEAD_AND_FOOT_PX = 150  # title, legend and axis
ROW_PX, MIN_ROW_PX = 30, 12
TALLEST_PX = 1600  # of the rows; more hospitals get thinner bars
MAX_BARS = 100  # the title tells how many are not drawn
LONGEST_NAME = 28  # letters


@dataclass(frozen=True)
class Bar:
    """What the picture shows of one hospital.

    Attributes:
        num_patients: Its patients.
        num_images: Their images.
        positives: Images with each finding.
        num_without_finding: Images without any.
        groups: Patients of each group, where the partition is by view, age or sex; otherwise empty.
    """

    num_patients: int
    num_images: int
    positives: Mapping[str, int]
    num_without_finding: int
    groups: Mapping[str, int]


@dataclass(frozen=True)
class _Segment:
    name: str
    counts: tuple[int, ...]  # one a hospital
    colour: str
    hatch: str = ""


def draw_partition(bars: Mapping[str, Bar], *, title: str) -> str:
    """Gives the SVG text, the same for the same partition.

    Args:
        bars: By hospital, from top to bottom.
        title: What was done.
    """
    if len(bars) > MAX_BARS:
        title += f" (the first {MAX_BARS} of {len(bars)})"
        bars = dict(list(bars.items())[:MAX_BARS])
    with mpl.rc_context({**STYLE, "svg.hashsalt": "partition", "hatch.linewidth": 1.1, "hatch.color": PAPER}):
        figure = _paint(bars, title=title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def _paint(bars: Mapping[str, Bar], *, title: str) -> Figure:
    row_px = max(MIN_ROW_PX, min(ROW_PX, TALLEST_PX // len(bars)))
    size_px = (WIDTH_PX, HEAD_AND_FOOT_PX + row_px * max(3, len(bars)))
    figure = Figure(
        figsize=(size_px[0] / POINTS_PER_INCH, size_px[1] / POINTS_PER_INCH), dpi=POINTS_PER_INCH, layout="constrained"
    )
    figure.set_facecolor(PAPER)  # a file of its own, on whatever page
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, color=INK, weight="bold", parse_math=False)
    groups = _group_segments(bars)
    columns = figure.subplots(1, 3 if groups else 2, sharey=True, width_ratios=([1.0] if groups else []) + [2.6, 1.0])
    if groups:
        _paint_shares(columns[0], groups, label="patients")
    _paint_shares(columns[-2], _finding_segments(bars), label="images by finding (one with two counts for both)")
    _paint_sizes(columns[-1], bars)
    for label in columns[0].set_yticks(range(len(bars)), [_short(name) for name in bars]):
        label.label1.set_parse_math(False)
        label.label1.set(color=INK, fontsize=min(11, row_px - 2))
    columns[0].set_ylim(len(bars) - 0.4, -0.6)
    return figure


def _finding_segments(bars: Mapping[str, Bar]) -> list[_Segment]:
    segments = [
        _Segment(
            finding.replace("_", " "),
            tuple(bar.positives.get(finding, 0) for bar in bars.values()),
            _HUES[index % len(_HUES)],
            _HATCH if index >= len(_HUES) else "",
        )
        for index, finding in enumerate(FINDINGS)
    ]
    without = tuple(bar.num_without_finding for bar in bars.values())
    return [*segments, _Segment(NO_FINDING.lower(), without, _NO_FINDING)]


def _group_segments(bars: Mapping[str, Bar]) -> list[_Segment]:
    names = list(dict.fromkeys(name for bar in bars.values() for name in bar.groups))
    return [
        _Segment(
            name,
            tuple(bar.groups.get(name, 0) for bar in bars.values()),
            HOSPITALS[index % len(HOSPITALS)],
            _HATCH if index >= len(HOSPITALS) else "",
        )
        for index, name in enumerate(names)
    ]


def _paint_shares(axes: Axes, segments: Sequence[_Segment], *, label: str) -> None:
    counts = np.array([segment.counts for segment in segments], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=0), 1.0)
    left = np.zeros(counts.shape[1])
    for segment, width in zip(segments, shares, strict=True):
        axes.barh(
            range(len(width)),
            width,
            left=left,
            height=0.72,
            color=segment.colour,
            hatch=segment.hatch,
            edgecolor=PAPER,
            linewidth=0.6,
            label=segment.name,
        )
        left += width
    axes.set(xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_xlabel(label)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=5 if len(segments) > 6 else 3,
        frameon=False,
        fontsize=9.5,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def _paint_sizes(axes: Axes, bars: Mapping[str, Bar]) -> None:
    images = [bar.num_images for bar in bars.values()]
    axes.barh(range(len(images)), images, height=0.72, color=HAIRLINE)
    for place, bar in enumerate(bars.values()):
        axes.annotate(
            f"{bar.num_images:,} ({bar.num_patients:,} patients)",
            (0, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=9.5,
        )
    axes.set(xlim=(0, max(images) * 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("images")
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
