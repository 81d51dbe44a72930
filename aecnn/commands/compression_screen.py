"""What `aecnn evaluate --reconstruction` measures, and how it looks: a table, a sentence and a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from aecnn.console import progress_bar, say, table_of
from aecnn.errors import ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from matplotlib.axes import Axes

    from aecnn.data.source import LoadedImages
    from aecnn.evaluation.reconstruction import Compression, Quality

PLOT_ENDINGS = (".png", ".svg", ".pdf")
WIDTH_INCHES, HEIGHT_INCHES, DPI = 11.0, 4.4, 120
COLOURS = {"JPEG": "#8b949e", "JPEG 2000": "#1f6feb", "WebP": "#2da44e"}
ACCENT, SCALED = "#d1242f", "#9a6700"
MARKERS = ("v", "s", "^")


def refuse_plot(plot: Path | None, *, with_reconstruction: bool) -> None:
    """Refuses a place for the plot before the work.

    Raises:
        ConfigError: There is nothing to draw, or it cannot be written there.
    """
    if plot is None:
        return
    faults = [] if with_reconstruction else ["--plot goes with --reconstruction"]
    if plot.suffix.lower() not in PLOT_ENDINGS:
        faults.append(f"--plot {plot} ends in {plot.suffix!r}: give a name that ends in {', '.join(PLOT_ENDINGS)}")
    if not plot.absolute().parent.is_dir():
        faults.append(f"--plot: {plot.parent} is no folder: make it first")
    if faults:
        raise ConfigError("aecnn evaluate", faults)


def measure_compression(
    checkpoint: Path,
    loaded: "LoadedImages",
    *,
    device: str,
    batch_size: int,
    num_compared: int,
    plot: Path | None,
) -> "Compression":
    """Compresses images with a model, compares, and draws the plot where one is asked for."""
    from aecnn.evaluation.reconstruction import judge_compression
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    model = load_checkpoint(checkpoint)
    with progress_bar("comparing codecs") as (progress, task):
        found = judge_compression(
            model.build(),
            model.metadata,
            loaded,
            device=resolve_device(device),
            batch_size=batch_size,
            num_compared=num_compared,
            with_curves=plot is not None,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if plot is not None:
        draw_compression(found, plot)
    return found


def show_compression(found: "Compression", console: Console) -> None:
    """Prints the comparison and what 8 bits change for the classifier."""
    say(
        console,
        f"\nCompressed, {found.num_images} images of {found.image_size_px} px take {found.num_bytes:,} bytes, "
        f"{found.bits_per_pixel:.3f} bits a pixel.\n"
        f"Beside others at the same size, over {found.num_compared_images} of them:",
    )
    table = table_of("coded as", "bytes", "bits a pixel", "PSNR dB", "SSIM", "MS-SSIM")
    for method in found.methods:
        table.add_row(
            method.name,
            f"{method.bytes_per_image:,.0f}",
            f"{method.bits_per_pixel:.3f}",
            _told(method.psnr_db, 2),
            _told(method.ssim, 4),
            _told(method.ms_ssim, 4),
        )
    console.print(table)
    if found.methods[0].ms_ssim is None:
        say(console, "MS-SSIM needs images of over 160 px.")
    change = found.classification
    say(
        console,
        f"Classified from the file instead of the image: latents move by {change.max_latent_change:.5f} at most "
        f"(half a step of 8 bits is {1 / 510:.5f}), logits by {change.max_logit_change:.5f} "
        f"({change.mean_logit_change:.5f} on average), "
        f"macro AUROC from {_told(change.macro_auroc_of_images, 5)} to {_told(change.macro_auroc_of_latents, 5)}, "
        f"that of a finding by {_told(change.max_auroc_change, 5)} at most.",
    )


def draw_compression(found: "Compression", path: Path) -> None:
    """Draws quality against size into a file, whose ending says its kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    measures = ("psnr_db", "ssim" if found.methods[0].ms_ssim is None else "ms_ssim")
    for axes, measure in zip(figure.subplots(1, 2), measures, strict=True):
        _draw_one(axes, found, measure)
    legend = figure.axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def _draw_one(axes: "Axes", found: "Compression", measure: str) -> None:
    for name, points in found.curves.items():
        places, heights = [point.bits_per_pixel for point in points], [_height(point, measure) for point in points]
        axes.plot(places, heights, color=COLOURS.get(name), label=name, marker="o", markersize=3, linewidth=1.4)
    ours, *others = found.methods
    for marker, other in zip(MARKERS, [m for m in others if m.name not in COLOURS], strict=True):
        place, height = [other.bits_per_pixel], [_height(other, measure)]
        axes.plot(place, height, label=other.name, color=SCALED, marker=marker, fillstyle="none", linestyle="none")
    axes.plot(
        [ours.bits_per_pixel],
        [_height(ours, measure)],
        color=ACCENT,
        label=ours.name,
        marker="D",
        markersize=7,
        linestyle="none",
    )
    title = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}[measure]
    axes.set(xlabel="bits a pixel", ylabel=title, xscale="log")
    ticks = [
        rate for rate in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if axes.get_xlim()[0] <= rate <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _height(quality: "Quality", measure: str) -> float:
    value = {"psnr_db": quality.psnr_db, "ssim": quality.ssim, "ms_ssim": quality.ms_ssim}[measure]
    return float("nan") if value is None else value


def _told(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
