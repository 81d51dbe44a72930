"""``aecnn``: the model and the data, for anyone who has either."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from aecnn.config import Backbone, ImagesConfig, ModelConfig, OnUnreadable, PhantomConfig, Split, validate_config
from aecnn.errors import AecnnError, ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds, and `check` needs none
    from aecnn.data.check.labels import LabelsReport
    from aecnn.evaluation.metrics import Metrics
    from aecnn.model.describe import Description

EXIT_FAULTY_INPUT = 2
EXIT_FAULTS_FOUND = 1

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
app = typer.Typer(
    help="The joint AE-CNN on chest X-rays: make phantom data, check labels, evaluate and describe models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    patients: Annotated[int, typer.Option(help="Number of patients; each has one or more images.")] = 400,
    image_size_px: Annotated[int, typer.Option(help="Side of the square images, in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    preset: Annotated[str, typer.Option(help="Prevalence: demo (every finding in ≥ 5 % of images) or nih.")] = "demo",
    hospitals: Annotated[int, typer.Option(help="Hospitals the patients belong to, each with its scanner style.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw; the bytes do not depend on it.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Draw synthetic chest radiographs in the official ChestX-ray14 layout.

    Anatomy and lesions are parametric; no patient's data are in them. The folder gets images/, the table, the two
    official lists, patients.csv (patient → hospital) and phantom.json (prevalence, and how learnable each finding is).
    """
    from aecnn.data.phantom import write_phantom

    config = validate_config(
        {
            "num_patients": patients,
            "image_size_px": image_size_px,
            "seed": seed,
            "preset": preset,
            "num_hospitals": hospitals,
        },
        PhantomConfig,
        subject="aecnn phantom",
    )
    with _progress("drawing phantoms") as (progress, task):
        report = write_phantom(
            out,
            config,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            num_workers=workers,
        )
    if json_:
        _print_json({"root": str(out), **vars(report)})
        return
    table = _table("finding", "prevalence", "oracle AUROC")
    for name, prevalence in report.prevalence.items():
        oracle = report.oracle_auroc.get(name)
        table.add_row(name, f"{prevalence:.1%}", "" if oracle is None else f"{oracle:.3f}")
    console = Console()
    console.print(table)
    say(
        console,
        f"{report.num_images} images of {report.num_patients} patients in {out}",
    )


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Folder in the ChestX-ray14 layout, or its table.")],
    labels_only: Annotated[
        bool, typer.Option("--labels-only", help="Check the tables and lists; do not look for image files.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check a dataset's tables: rows, findings, patients, splits. Nothing leaves the machine.

    Exit codes: 0 no fault, 1 faults found, 2 the command cannot be carried out.
    """
    if not labels_only:
        raise ConfigError("aecnn check", ["images are not checked yet: add --labels-only to check the tables"])
    from aecnn.data.check.labels import check_labels

    report = check_labels(data)
    if json_:
        _print_json(report.to_json())
    else:
        _show_labels(report, Console())
    if report.faults:
        raise typer.Exit(EXIT_FAULTS_FOUND)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model to judge: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Predictions to judge: CSV with `Image Index` and a column a finding.", show_default=False),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder in the ChestX-ray14 layout.", show_default=False)] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="With --predictions: CSV `Image Index,Patient ID,<findings 0/1/empty>`.", show_default=False),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which official list of --data.")] = "test",
    on_unreadable: Annotated[
        OnUnreadable, typer.Option(help="Images that cannot be decoded: refuse the set, or skip them.")
    ] = "refuse",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_: JsonOption = False,
) -> None:
    """Score a model, or predictions made elsewhere: AUROC and average precision by finding, and their macro means.

    A finding without a positive or a negative image is undefined and left out of the means. With --checkpoint, PSNR
    and SSIM of the reconstructions too.
    """
    if (checkpoint is None) == (predictions is None):
        raise ConfigError("aecnn evaluate", ["give either --checkpoint or --predictions"])
    if checkpoint is not None:
        if data is None or targets is not None:
            raise ConfigError("aecnn evaluate", ["--checkpoint goes with --data, not with --targets"])
        metrics = _evaluate_checkpoint(checkpoint, data, split, on_unreadable, batch_size=batch_size, device=device)
        document = {"checkpoint": str(checkpoint), "split": split, **metrics.to_json()}
    elif predictions is not None:
        if (data is None) == (targets is None):
            raise ConfigError("aecnn evaluate", ["--predictions goes with either --data or --targets"])
        metrics = _score_table(predictions, data, targets, split)
        document = {"predictions": str(predictions), **metrics.to_json()}
    if json_:
        _print_json(document)
    else:
        _show_metrics(metrics, Console())


@app.command()
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
        _print_json(description.to_dict())
    else:
        _show_description(description, Console())


def _evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    split: Split,
    on_unreadable: OnUnreadable,
    *,
    batch_size: int,
    device: str,
) -> "Metrics":
    from aecnn.data.manifest import read_split
    from aecnn.evaluation.evaluate import evaluate_split
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    loaded = load_checkpoint(checkpoint)
    with _progress("evaluating") as (progress, task):
        evaluation = evaluate_split(
            loaded.build(),
            loaded.metadata.images,
            read_split(data, split),
            on_unreadable=on_unreadable,
            device=resolve_device(device),
            batch_size=batch_size,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console = Console(stderr=True)
    for sentence in evaluation.loaded.skipped:
        say(console, f"skipped: {escape(sentence)}")
    if evaluation.loaded.skipped:
        say(console, f"{len(evaluation.loaded.skipped)} unreadable image(s) skipped")
    return evaluation.metrics


def _score_table(predictions: Path, data: Path | None, targets: Path | None, split: Split) -> "Metrics":
    from aecnn.data.manifest import read_split
    from aecnn.evaluation.predictions import read_targets, score_predictions

    if targets is not None:
        images, patients, wanted = read_targets(targets)
        return score_predictions(predictions, images, patients, wanted)
    if data is None:
        raise ConfigError("aecnn evaluate", ["--predictions goes with either --data or --targets"])
    manifest = read_split(data, split, require_images=False)
    table = manifest.table
    return score_predictions(predictions, table["image"].tolist(), table["patient"].tolist(), manifest.targets)


def _show_metrics(metrics: "Metrics", console: Console) -> None:
    table = _table("finding", "AUROC", "AUPRC", "positives", "negatives")
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


def _show_labels(report: "LabelsReport", console: Console) -> None:
    table = _table("finding", "images")
    for name, count in report.findings.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    say(
        console,
        f"\n{report.num_images:,} images of {report.num_patients:,} patients",
    )
    for name, counts in report.splits.items():
        say(
            console,
            f"  {name}: {counts.num_images:,} images of {counts.num_patients:,} patients",
        )
    for warning in report.warnings:
        say(console, f"[yellow]warning[/] {escape(warning)}")
    for fault in report.faults:
        say(console, f"[bold red]fault[/] {escape(fault)}")
    if not report.faults:
        console.print("[green]no fault found[/]")


def _show_description(description: "Description", console: Console) -> None:
    table = _table("layer", "kind", "output", "parameters", "MACs")
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


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "kind" else "right")
    return table


@contextmanager
def _progress(description: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, gone when the work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress, progress.add_task(description, total=None)


def say(console: Console, text: str) -> None:
    """Prints a sentence as it is: no colours guessed into it, and no line broken where the output is a pipe."""
    console.print(text, highlight=False, soft_wrap=True)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, allow_nan=False))


def run_cli(cli: typer.Typer, *, exit_codes: dict[type[AecnnError], int]) -> None:
    """Runs a command line; what a user can mend is told in a sentence, without a traceback.

    Args:
        cli: The commands.
        exit_codes: Exit codes of errors that are no fault of the input; all others exit with 2.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        cli()
    except AecnnError as error:
        say(Console(stderr=True), f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(exit_codes.get(type(error), EXIT_FAULTY_INPUT))


def main() -> None:
    """The console script ``aecnn``."""
    run_cli(app, exit_codes={})
