"""The command `evaluate`: how good a model is, or predictions made elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.commands.compression_screen import measure_compression, refuse_plot, show_compression
from aecnn.commands.judging_screen import show_metrics
from aecnn.commands.options import BatchSizeOption, CropsOption, DeviceOption, OnUnreadableOption
from aecnn.config import DatasetConfig, Split, TestCrops, load_dataset
from aecnn.console import JsonOption, print_json, progress_bar, say
from aecnn.errors import ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from aecnn.evaluation.evaluate import Evaluation
    from aecnn.evaluation.judging import Judging
    from aecnn.evaluation.metrics import Metrics
    from aecnn.evaluation.predictions import Labels
    from aecnn.evaluation.reconstruction import Compression

DataOption = Annotated[
    Path | None, typer.Option(help="Folder of the dataset, or a YAML with a `data:` section.", show_default=False)
]
TargetsOption = Annotated[
    Path | None,
    typer.Option(
        help="Instead of --data, for predictions: CSV `Image Index,Patient ID,<findings>` with 1, 0 or nothing; "
        "`Patient Sex`, `Patient Age`, `View Position` and `Hospital` make groups. Knows no withdrawn patients.",
        show_default=False,
    ),
]
SplitOption = Annotated[Split, typer.Option(help="Which official list of --data.")]
BootstrapOption = Annotated[
    int,
    typer.Option(min=0, help="Resamples of patients for the 95 % intervals; 0: none. 1000 take about a second."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the resamples: the same seed gives the same intervals.")]


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model to judge: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Predictions to judge: CSV with `Image Index` and a column a finding.", show_default=False),
    ] = None,
    data: DataOption = None,
    targets: TargetsOption = None,
    split: SplitOption = "test",
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    subgroups: Annotated[
        bool,
        typer.Option("--subgroups", help="Also show figures by sex, age, view and hospital; JSON has them always."),
    ] = False,
    min_patients: Annotated[int, typer.Option(min=1, help="Figures of a group of fewer patients are not shown.")] = 10,
    on_unreadable: OnUnreadableOption = None,
    crops: CropsOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "auto",
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

    Intervals are of 95 %, on patients drawn with replacement.
    A finding without a positive or a negative image is undefined and left out of the means.
    ECE is the mean gap between predicted probability and observed share, in bins of equal numbers of images.
    The macro AUROC of the view position alone is what a shortcut could reach.
    With --checkpoint, PSNR and SSIM of the reconstructions too.

        aecnn evaluate --checkpoint runs/mine/global.safetensors --data /data/chest --subgroups

        aecnn evaluate --predictions P.csv --targets T.csv --bootstrap 2000 --json
    """
    _refuse(checkpoint, predictions, data, targets, reconstruction=reconstruction)
    refuse_plot(plot, with_reconstruction=reconstruction)
    from aecnn.evaluation.judging import Judging

    how, compression = Judging(num_resamples=bootstrap, seed=seed, min_patients=min_patients), None
    if predictions is not None:
        metrics = _judge_table(predictions, labels_to_score(data, targets, split), how)
        document: dict[str, Any] = {"predictions": str(predictions), **metrics.to_json()}
    elif checkpoint is not None and data is not None:
        from aecnn.evaluation.evaluate import judge_evaluation

        dataset = load_dataset(data)
        if on_unreadable is not None:
            dataset = dataset.model_copy(update={"on_unreadable": on_unreadable})
        evaluation = _evaluate_checkpoint(checkpoint, dataset, split, crops, batch_size=batch_size, device=device)
        metrics = judge_evaluation(evaluation, how)
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
    if json_:
        print_json(document)
        return
    show_metrics(metrics, Console(), with_subgroups=subgroups, min_patients=min_patients)
    _show_compression(compression, plot)


def labels_to_score(data: Path | None, targets: Path | None, split: Split) -> "Labels":
    """Reads what is known of the images that predictions are scored on; of one of the two places."""
    from aecnn.data.manifest import read_split
    from aecnn.evaluation.predictions import labels_of, read_labels

    if targets is not None:
        labels = read_labels(targets)
        for sentence in labels.warnings:
            say(Console(stderr=True), f"[yellow]warning[/] {escape(sentence)}")
        return labels
    if data is None:
        raise ConfigError("aecnn", ["give either --data or --targets"])
    return labels_of(read_split(load_dataset(data), split, require_images=False))


def _refuse(
    checkpoint: Path | None, predictions: Path | None, data: Path | None, targets: Path | None, *, reconstruction: bool
) -> None:
    """Refuses options that do not go together, all of them at once."""
    faults = []
    if (checkpoint is None) == (predictions is None):
        faults.append("give either --checkpoint or --predictions")
    elif checkpoint is not None and (data is None or targets is not None):
        faults.append("--checkpoint needs --data, and goes without --targets")
    elif predictions is not None and (data is None) == (targets is None):
        faults.append("--predictions goes with either --data or --targets")
    if predictions is not None and reconstruction:
        faults.append("--reconstruction goes with --checkpoint")
    if faults:
        raise ConfigError("aecnn evaluate", faults)


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


def _judge_table(predictions: Path, labels: "Labels", how: "Judging") -> "Metrics":
    from aecnn.evaluation.calibration import probabilities_of
    from aecnn.evaluation.judging import Scored, judge
    from aecnn.evaluation.metrics import score
    from aecnn.evaluation.predictions import scores_of

    scores = scores_of(predictions, labels.images)
    scored = Scored(scores, probabilities_of(scores), labels.targets, labels.patients)
    return judge(score(scores, labels.targets, labels.patients), scored, labels.groups, how)


def _show_compression(compression: "Compression | None", plot: Path | None) -> None:
    if compression is not None:
        show_compression(compression, Console())
        if plot is not None:
            say(Console(), f"plot: {escape(str(plot))}")
