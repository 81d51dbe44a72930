"""A radiograph beside its heatmaps, as a PNG at the radiograph's own size.

Shapes: H and W of the radiograph as its file has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

PANEL_INCHES = 5.0  # the longer side of the radiograph
TEXT_INCHES = 0.75  # above and below it
MAX_SIDE_PX = 2048  # a larger radiograph is shown at this size
MIN_SIDE_PX = 500  # a smaller one is enlarged, so that the text can be read
MOST_OPAQUE = 0.6  # of the strongest point, so that the radiograph stays visible under it
SOFTWARE = "aecnn explain"  # what the picture says it is written by, so that no other is overwritten
INK, PAPER, MUTED = "#e8ebee", "#101418", "#9aa4ae"  # a dark surround, as radiographs are read in

_PNG, _START_BYTES = b"\x89PNG\r\n\x1a\n", 1024  # a picture's own texts come before its pixels


@dataclass(frozen=True, eq=False)
class Explained:
    """Where the model looked for one finding."""

    finding: str
    probability: float
    heatmap: NDArray[np.floating]  # [H, W] in [0, 1], NaN where the model did not look


def draw_overlay(
    path: Path, grey: NDArray[np.uint8], explained: Sequence[Explained], *, method: str, title: str, note: str
) -> None:
    """Writes the picture.

    Args:
        path: Where to, a PNG.
        grey: [H, W].
        explained: One panel each, to the right of the radiograph.
        method: Of the heatmaps, for the colours' legend.
        title: Above the radiograph.
        note: Below all, one line.
    """
    height, width = (side / max(grey.shape) * PANEL_INCHES for side in grey.shape)
    dpi = min(max(*grey.shape, MIN_SIDE_PX), MAX_SIDE_PX) / PANEL_INCHES
    num_panels = 1 + len(explained)
    with mpl.rc_context({"font.family": ["DejaVu Sans"], "font.size": 9.0, "axes.titlesize": 9.0}):
        figure = Figure(
            figsize=(num_panels * (width + 0.25) + 0.75, height + TEXT_INCHES),
            dpi=dpi,
            facecolor=PAPER,
            layout="constrained",
        )
        axes = figure.subplots(1, num_panels, squeeze=False)[0]
        for panel in axes:
            panel.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            panel.set_axis_off()
        axes[0].set_title(title, color=INK)
        for panel, one in zip(axes[1:], explained, strict=True):
            _lay_over(panel, one)
        _colour_bar(figure, axes[-1], label=f"{method}, strongest point = 1")
        figure.supxlabel(note, color=MUTED, fontsize=7.5)
        figure.savefig(path, format="png", metadata={"Software": SOFTWARE})


def is_overlay(path: Path) -> bool:
    """Whether a file is a picture that was written here.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    return start.startswith(_PNG) and b"tEXtSoftware\0" + SOFTWARE.encode("latin-1") in start


def _lay_over(panel: Axes, explained: Explained) -> None:
    heat = explained.heatmap
    panel.set_title(f"{explained.finding.replace('_', ' ')}, probability {explained.probability:.2f}", color=INK)
    panel.imshow(np.ma.masked_invalid(heat), cmap=_colours(), vmin=0.0, vmax=1.0, interpolation="antialiased")
    unseen = np.isnan(heat)
    if unseen.any():
        rows, columns = (np.flatnonzero(~unseen.all(axis=axis)) for axis in (1, 0))
        edges = (columns[0] - 0.5, rows[0] - 0.5), columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        panel.add_patch(
            mpl.patches.Rectangle(*edges, fill=False, edgecolor=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
        )


def _colour_bar(figure: Figure, panel: Axes, *, label: str) -> None:
    colours = mpl.cm.ScalarMappable(norm=mpl.colors.Normalize(0.0, 1.0), cmap=_colours())
    bar = figure.colorbar(colours, ax=panel, fraction=0.045, pad=0.02, ticks=[0.0, 0.5, 1.0])
    bar.ax.set_facecolor("#808080")  # the colours are seen through, and lie on grey in the picture too
    bar.ax.tick_params(colors=INK, length=0, labelsize=8.0)
    bar.set_label(label, color=INK, fontsize=8.0)
    bar.outline.set_visible(False)


def _colours() -> ListedColormap:
    """From nothing over red to yellow: the weaker, the more the radiograph shines through."""
    steps = np.linspace(0.0, 1.0, 256)
    colours = mpl.colormaps["hot"](0.25 + 0.6 * steps)
    colours[:, 3] = MOST_OPAQUE * steps
    return ListedColormap(colours)
