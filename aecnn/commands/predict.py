"""The command `predict`: a table of probabilities for a dataset, or for radiographs without any table."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from aecnn.commands.options import BatchSizeOption, CropsOption, DeviceOption, OnUnreadableOption, faults_of_output
from aecnn.config import DatasetConfig, OnUnreadable, Split, TestCrops, load_dataset
from aecnn.console import JsonOption, print_json, progress_bar, say
from aecnn.errors import ConfigError
from aecnn.findings import FINDINGS

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from numpy.typing import NDArray

    from aecnn.data.manifest import Manifest
    from aecnn.data.source import LoadedImages

COMMAND = "aecnn predict"
IMAGE_COLUMN = "Image Index"  # of a predictions table


def predict(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Radiographs: PNG, JPEG or DICOM.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The model: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The table: .csv.", show_default=False)] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Instead of IMAGES: folder of a dataset, or a YAML with a `data:` section.", show_default=False
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which official list of --data.")] = "all",
    calibrate_on: Annotated[
        Path | None,
        typer.Option(help="Validation predictions of this model, to fit a temperature on: CSV.", show_default=False),
    ] = None,
    calibrate_targets: Annotated[
        Path | None,
        typer.Option(help="Their targets: CSV `Image Index,Patient ID,<findings>`.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divide all logits by this, instead of fitting it; default 1.", show_default=False),
    ] = None,
    on_unreadable: OnUnreadableOption = None,
    crops: CropsOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Write a model's probabilities as a table, which `aecnn evaluate --predictions` reads.

    With a temperature above 1 a model that is too sure of itself says less extreme probabilities; no AUROC changes.
    Fit it on validation images, never on those that the model is then judged on.
    """
    chosen = images or []
    faults = [] if checkpoint is not None else ["--checkpoint is missing: give a model, as a run leaves it"]
    faults += _faults_of_output(output)
    if bool(chosen) == (data is not None):
        faults.append("give either IMAGES or --data")
    faults += _faults_of_temperature(calibrate_on, calibrate_targets, temperature)
    if faults or checkpoint is None or output is None:
        raise ConfigError(COMMAND, faults)
    if calibrate_on is not None and calibrate_targets is not None:
        temperature = _fitted_temperature(calibrate_on, calibrate_targets)
    dataset, manifest = _read(chosen, data, split, on_unreadable)
    loaded, logits = _run(checkpoint, manifest, dataset, crops=crops, batch_size=batch_size, device=device)
    _write(output, loaded, logits, temperature=temperature or 1.0)
    document = {
        "checkpoint": str(checkpoint),
        "predictions": str(output),
        "num_images": len(loaded.manifest),
        "num_skipped_images": len(loaded.skipped),
        "temperature": temperature or 1.0,
    }
    if json_:
        print_json(document)
        return
    say(Console(), f"Written: {escape(str(output))}, the probabilities of {len(loaded.manifest):,} image(s).")
    if temperature is not None:
        say(Console(), f"All logits were divided by the temperature [bold]{temperature:.4g}[/].")


def _faults_of_output(output: Path | None) -> list[str]:
    faults = faults_of_output(output, suffix=".csv", what="table")
    if faults or output is None or not output.exists():
        return faults
    try:
        with output.open("rb") as file:
            start = file.readline(1000)
    except OSError as error:
        return [f"--output {output} is there already and cannot be read ({error.strerror}): give another name"]
    if start.decode("utf-8", errors="replace").strip() != ",".join((IMAGE_COLUMN, *FINDINGS)):
        return [f"--output {output} is there already and is no table of predictions: give another name"]
    return []


def _faults_of_temperature(
    calibrate_on: Path | None, calibrate_targets: Path | None, temperature: float | None
) -> list[str]:
    faults = []
    if (calibrate_on is None) != (calibrate_targets is None):
        faults.append("--calibrate-on and --calibrate-targets go together: the predictions, and what is true")
    if calibrate_on is not None and temperature is not None:
        faults.append("--calibrate-on fits the temperature, and --temperature gives it: leave one out")
    if temperature is not None and not (0.0 < temperature < math.inf):
        faults.append(f"--temperature is {temperature:g}: give a number above 0")
    return faults


def _read(
    images: list[Path], data: Path | None, split: Split, on_unreadable: OnUnreadable | None
) -> "tuple[DatasetConfig, Manifest]":
    from aecnn.data.loose_files import manifest_of_files
    from aecnn.data.manifest import read_split

    if data is None:
        dataset, manifest = DatasetConfig(root=Path.cwd(), use_cache=False), manifest_of_files(images)
    else:
        dataset = load_dataset(data)
        manifest = read_split(dataset, split)
    if on_unreadable is not None:
        dataset = dataset.model_copy(update={"on_unreadable": on_unreadable})
    return dataset, manifest


def _fitted_temperature(predictions: Path, targets: Path) -> float:
    from aecnn.evaluation.calibration import fit_temperature, logits_of, probabilities_of
    from aecnn.evaluation.predictions import read_targets, scores_of

    images, _, wanted = read_targets(targets)
    return fit_temperature(logits_of(probabilities_of(scores_of(predictions, images))), wanted)


def _run(
    checkpoint: Path,
    manifest: "Manifest",
    dataset: DatasetConfig,
    *,
    crops: TestCrops | None,
    batch_size: int,
    device: str,
) -> "tuple[LoadedImages, NDArray[np.float32]]":
    """The images that can be read, and their logits [N, 14]; warnings go to standard error."""
    from aecnn.data.source import load_images
    from aecnn.evaluation.outputs import run_model
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    read, on_device = load_checkpoint(checkpoint), resolve_device(device)
    config = read.metadata.images
    with progress_bar("reading") as (progress, task):
        loaded = load_images(
            manifest,
            dataset,
            size_px=config.size_px,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console = Console(stderr=True)
    for sentence in loaded.warnings:
        say(console, f"[yellow]warning[/] {escape(sentence)}")
    for sentence in loaded.skipped:
        say(console, f"skipped: {escape(sentence)}")
    with progress_bar("predicting") as (progress, task):
        outputs = run_model(
            read.build(),
            loaded,
            np.arange(len(loaded.manifest)),
            config,
            batch_size=batch_size,
            device=on_device,
            crops=crops or config.test_crops,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return loaded, outputs.logits


def _write(output: Path, loaded: "LoadedImages", logits: "NDArray[np.float32]", *, temperature: float) -> None:
    from scipy.special import expit

    from aecnn.evaluation.predictions import write_predictions

    write_predictions(output, loaded.manifest.table["image"].tolist(), expit(logits.astype(np.float64) / temperature))
