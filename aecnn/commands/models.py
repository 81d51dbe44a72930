"""Commands about models: `evaluate` and `describe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.commands.compression_screen import measure_compression, refuse_plot, show_compression
from aecnn.config import (
    Backbone,
    DatasetConfig,
    ImagesConfig,
    ModelConfig,
    OnUnreadable,
    Split,
    TestCrops,
    load_dataset,
    validate_config,
)
from aecnn.console import JsonOption, print_json, progress_bar, say, table_of
from aecnn.errors import ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from aecnn.evaluation.evaluate import Evaluation
    from aecnn.evaluation.metrics import Metrics
    from aecnn.evaluation.reconstruction import Compression
    from aecnn.model.describe import Description


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model to judge: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Predictions to judge: CSV with `Image Index` and a column a finding.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the dataset, or a YAML with a `data:` section.", show_default=False)
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(
            help="With --predictions: CSV `Image Index,Patient ID,<findings>`; knows no withdrawn patients.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which official list of --data.")] = "test",
    on_unreadable: Annotated[
        OnUnreadable | None,
        typer.Option(help="Images that cannot be decoded: refuse (the default), or skip them.", show_default=False),
    ] = None,
    crops: Annotated[
        TestCrops | None,
        typer.Option(help="centre, or the mean of ten crops; default: as the checkpoint says.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reconstruction: Annotated[
        bool, typer.Option("--reconstruction", help="Also compress the images, and compare with other codecs.")
    ] = False,
    compared_images: Annotated[
        int, typer.Option(min=1, help="With --reconstruction: most images that the other codecs are tried on.")
    ] = 16,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --reconstruction: draw quality against size (.png, .svg, .pdf).", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Score a model, or predictions made elsewhere: AUROC and average precision by finding, and their macro means.

    A finding without a positive or a negative image is undefined and left out of the means. With --checkpoint, PSNR
    and SSIM of the reconstructions too.
    """
    refuse_plot(plot, with_reconstruction=reconstruction)
    compression: Compression | None = None
    if (checkpoint is None) == (predictions is None):
        raise ConfigError("aecnn evaluate", ["give either --checkpoint or --predictions"])
    if checkpoint is not None:
        if data is None or targets is not None:
            raise ConfigError("aecnn evaluate", ["--checkpoint needs --data, and goes without --targets"])
        dataset = load_dataset(data)
        if on_unreadable is not None:
            dataset = dataset.model_copy(update={"on_unreadable": on_unreadable})
        evaluation = _evaluate_checkpoint(checkpoint, dataset, split, crops, batch_size=batch_size, device=device)
        metrics = evaluation.metrics
        document = {"checkpoint": str(checkpoint), "split": split, **metrics.to_json()}
        if reconstruction:
            compression = measure_compression(
                checkpoint,
                evaluation.loaded,
                device=device,
                batch_size=batch_size,
                num_compared=compared_images,
                plot=plot,
            )
            document["compression"] = compression.to_json()
    elif predictions is not None:
        if reconstruction:
            raise ConfigError("aecnn evaluate", ["--reconstruction goes with --checkpoint"])
        if (data is None) == (targets is None):
            raise ConfigError("aecnn evaluate", ["--predictions goes with either --data or --targets"])
        metrics = _score_table(predictions, data, targets, split)
        document = {"predictions": str(predictions), **metrics.to_json()}
    if json_:
        print_json(document)
    else:
        _show_metrics(metrics, Console())
        if compression is not None:
            show_compression(compression, Console())
            if plot is not None:
                say(Console(), f"plot: {escape(str(plot))}")


def describe(
    backbone: Annotated[str | None, typer.Option(help="A backbone, such as densenet121.", show_default=False)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint's model.", show_default=False)] = None,
    input_size_px: Annotated[
        int | None, typer.Option(help="Side of the input; default 896, or the checkpoint's.", show_default=False)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Describe a model: layers, parameters, multiply-accumulates, latent shape, megabytes on the wire."""
    if (backbone is None) == (checkpoint is None):
        known = ", ".join(get_args(Backbone))
        raise ConfigError("aecnn describe", [f"give either --checkpoint or --backbone; backbones: {known}"])
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.model.describe import describe_model

    if checkpoint is not None:
        metadata = load_checkpoint(checkpoint).metadata
        config, images = metadata.model, metadata.images
    else:
        config = validate_config({"backbone": backbone}, ModelConfig, subject="aecnn describe --backbone")
        images = ImagesConfig(size_px=896)
    description = describe_model(config, input_size_px=images.input_size_px if input_size_px is None else input_size_px)
    if json_:
        print_json(description.to_dict())
    else:
        _show_description(description, Console())


def _evaluate_checkpoint(
    checkpoint: Path, dataset: DatasetConfig, split: Split, crops: TestCrops | None, *, batch_size: int, device: str
) -> "Evaluation":
    from aecnn.data.manifest import read_split
    from aecnn.evaluation.evaluate import evaluate_split
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    loaded = load_checkpoint(checkpoint)
    images = loaded.metadata.images
    with progress_bar("evaluating") as (progress, task):
        evaluation = evaluate_split(
            loaded.build(),
            images if crops is None else images.model_copy(update={"test_crops": crops}),
            read_split(dataset, split),
            dataset=dataset,
            device=resolve_device(device),
            batch_size=batch_size,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console = Console(stderr=True)
    for sentence in evaluation.loaded.warnings:
        say(console, f"[yellow]warning[/] {escape(sentence)}")
    for sentence in evaluation.loaded.skipped:
        say(console, f"skipped: {escape(sentence)}")
    if evaluation.loaded.skipped:
        say(console, f"{len(evaluation.loaded.skipped)} unreadable image(s) skipped")
    return evaluation


def _score_table(predictions: Path, data: Path | None, targets: Path | None, split: Split) -> "Metrics":
    from aecnn.data.manifest import read_split
    from aecnn.evaluation.predictions import read_targets, score_predictions

    if targets is not None:
        images, patients, wanted = read_targets(targets)
        return score_predictions(predictions, images, patients, wanted)
    if data is None:
        raise ConfigError("aecnn evaluate", ["--predictions goes with either --data or --targets"])
    manifest = read_split(load_dataset(data), split, require_images=False)
    table = manifest.table
    return score_predictions(predictions, table["image"].tolist(), table["patient"].tolist(), manifest.targets)


def _show_metrics(metrics: "Metrics", console: Console) -> None:
    table = table_of("finding", "AUROC", "AUPRC", "positives", "negatives")
    for name, figures in metrics.findings.items():
        areas = (f"{figures.auroc:.4f}", f"{figures.auprc:.4f}") if figures.is_defined else ("–", "–")
        table.add_row(name, *areas, str(figures.num_positive), str(figures.num_negative))
    console.print(table)
    say(
        console,
        f"\n{metrics.num_images} images of {metrics.num_patients} patients: macro AUROC "
        f"[bold]{metrics.macro_auroc:.4f}[/], macro AUPRC {metrics.macro_auprc:.4f}",
    )
    if metrics.undefined_findings:
        say(
            console,
            f"Undefined, not in the means: {', '.join(metrics.undefined_findings)}",
        )
    if metrics.reconstruction is not None:
        say(
            console,
            f"Reconstruction: {metrics.reconstruction.psnr_db:.2f} dB PSNR, {metrics.reconstruction.ssim:.4f} SSIM",
        )


def _show_description(description: "Description", console: Console) -> None:
    table = table_of("layer", "kind", "output", "parameters", "MACs")
    for layer in description.layers:
        shape = "" if layer.output_shape is None else "×".join(str(side) for side in layer.output_shape)
        table.add_row(layer.name, layer.kind, shape, f"{layer.num_parameters:,}", f"{layer.macs:,}")
    console.print(table)
    counts, latent = description.num_parameters, "×".join(str(side) for side in description.latent_shape)
    say(
        console,
        f"\n{description.backbone}, normalisation {description.normalisation}: {counts['total']:,} parameters "
        f"(encoder {counts['encoder']:,}, decoder {counts['decoder']:,}, classifier {counts['classifier']:,})\n"
        f"input {description.input_size_px} px → latent {latent}, {description.macs['total'] / 1e6:,.1f} M "
        f"multiply-accumulates an image, {description.megabytes:.1f} MB on the wire",
    )
