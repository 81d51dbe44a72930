"""The command `explain`: where the model looked, on one radiograph or against a radiologist's boxes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from aecnn.config import DatasetConfig, OnUnreadable, Split, load_dataset
from aecnn.console import JsonOption, print_json, progress_bar, say, table_of
from aecnn.errors import ConfigError, PredictionsError, UnknownFindingError
from aecnn.findings import FINDINGS, finding_index

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    import torch

    from aecnn.config import ImagesConfig
    from aecnn.data.source import LoadedImages
    from aecnn.evaluation.pointing_game import HitRate, Target, Try
    from aecnn.model.joint import JointAECNN

COMMAND = "aecnn explain"
NOT_CLINICAL = "Research software, not for clinical use."


def explain(
    image: Annotated[Path | None, typer.Argument(help="A radiograph: PNG, JPEG or DICOM.", show_default=False)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The model: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="What to explain; may be given again. Default: the most probable.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture: .png.", show_default=False)
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Instead of IMAGE: boxes, as BBox_List_2017.csv.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="With --boxes: folder of the dataset, or a YAML with a `data:` section.", show_default=False),
    ] = None,
    split: Annotated[Split, typer.Option(help="With --boxes: which official list of --data.")] = "test",
    on_unreadable: Annotated[
        OnUnreadable | None,
        typer.Option(help="With --boxes: refuse unreadable images (the default), or skip them.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --boxes: images explained at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_: JsonOption = False,
) -> None:
    """Show where the model looked for a finding (Grad-CAM), or count how often that is in a radiologist's box.

    With an IMAGE: a picture of the heatmap over the radiograph. With --boxes and --data: the pointing game's hit rate
    by finding. A heatmap tells what moved the model's answer, not whether the finding is there.
    """
    findings = _check_options(image, checkpoint, finding or [], output, boxes, data)
    if image is not None and output is not None and checkpoint is not None:
        _explain_one(image, checkpoint, findings, output, device=device, as_json=json_)
    elif boxes is not None and data is not None and checkpoint is not None:
        dataset = load_dataset(data)
        if on_unreadable is not None:
            dataset = dataset.model_copy(update={"on_unreadable": on_unreadable})
        document = _play(boxes, checkpoint, dataset, split, batch_size=batch_size, device=device, as_json=json_)
        if json_:
            print_json(document)


def _check_options(
    image: Path | None,
    checkpoint: Path | None,
    spellings: list[str],
    output: Path | None,
    boxes: Path | None,
    data: Path | None,
) -> list[str]:
    """Gives the findings asked for, in the one spelling.

    Raises:
        ConfigError: With all that does not go together.
    """
    faults = [] if checkpoint is not None else ["--checkpoint is missing: give a model, as a run leaves it"]
    if (image is None) == (boxes is None):
        faults.append("give either an IMAGE, or --boxes with --data")
    elif image is not None:
        if output is None or output.suffix.lower() != ".png":
            faults.append(f"--output is {str(output or '')!r}: name the picture, ending in .png")
        elif not output.absolute().parent.is_dir():
            faults.append(f"--output {output}: there is no folder {output.absolute().parent}: make it first")
        elif output.exists() and output.samefile(image):
            faults.append(f"--output {output} is the radiograph itself: give another name")
        if data is not None:
            faults.append("--data goes with --boxes, not with an IMAGE")
    else:
        if data is None:
            faults.append("--boxes needs --data, the dataset of the images")
        if output is not None or spellings:
            faults.append("--output and --finding go with an IMAGE, not with --boxes")
    findings = []
    for spelling in spellings:
        try:
            findings.append(FINDINGS[finding_index(spelling)])
        except UnknownFindingError as error:
            faults.append(f"--finding: {error}")
    if faults:
        raise ConfigError(COMMAND, faults)
    return list(dict.fromkeys(findings))


def _explain_one(
    image: Path, checkpoint: Path, findings: list[str], output: Path, *, device: str, as_json: bool
) -> None:
    import torch

    from aecnn.data.augmentation import to_input
    from aecnn.data.images import open_content, read_file, square_and_scale
    from aecnn.evaluation.explain import cells_a_side, explain_images, on_radiograph
    from aecnn.evaluation.overlay import Explained, draw_overlay
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    loaded = load_checkpoint(checkpoint)
    config, model = loaded.metadata.images, loaded.build().to(resolve_device(device))
    grey = open_content(read_file(image), image).grey
    square = torch.from_numpy(square_and_scale(grey, size_px=config.size_px).copy())
    seen = to_input(square[None, None], config)  # [1, 1, S, S]
    with torch.inference_mode():
        logits = model(seen.to(model.imagenet_mean.device)).logits[0]
    probabilities = dict(zip(FINDINGS, torch.sigmoid(logits.double()).tolist(), strict=True))
    names = findings or [max(probabilities, key=lambda name: probabilities[name])]
    heatmaps = explain_images(model, seen.expand(len(names), -1, -1, -1), names).cpu().numpy()
    height, width = grey.shape
    explained = [
        Explained(name, probabilities[name], on_radiograph(heatmap, config, height_px=height, width_px=width))
        for name, heatmap in zip(names, heatmaps, strict=True)
    ]
    cells = cells_a_side(model, input_size_px=config.input_size_px)
    note = f"{checkpoint.name} at {config.input_size_px} px, heatmap of {cells} × {cells} cells. {NOT_CLINICAL}"
    draw_overlay(output, grey, explained, title=image.name, note=note)
    empty = [name for name, heatmap in zip(names, heatmaps, strict=True) if not heatmap.any()]
    document = {
        "image": str(image),
        "checkpoint": str(checkpoint),
        "output": str(output),
        "explained": names,
        "without_evidence": empty,
        "cells": cells,
        "probabilities": {name: round(value, 6) for name, value in probabilities.items()},
    }
    if as_json:
        print_json(document)
    else:
        _show_one(document, Console())


def _show_one(document: dict[str, Any], console: Console) -> None:
    for name in document["explained"]:
        say(console, f"{name}: probability [bold]{document['probabilities'][name]:.4f}[/]")
    for name in document["without_evidence"]:
        say(console, f"[yellow]warning[/] nothing in the image speaks for {name}: its heatmap is empty")
    say(console, f"Written: {escape(document['output'])}. {NOT_CLINICAL}")


def _play(
    boxes: Path, checkpoint: Path, dataset: DatasetConfig, split: Split, *, batch_size: int, device: str, as_json: bool
) -> dict[str, Any]:
    from aecnn.data.manifest import read_split
    from aecnn.data.source import load_images
    from aecnn.evaluation.explain import cells_a_side
    from aecnn.evaluation.pointing_game import INTERVAL_LEVEL, hit_rate, hit_rates, read_boxes
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    targets = read_boxes(boxes)
    checkpoint_read = load_checkpoint(checkpoint)
    config, model = checkpoint_read.metadata.images, checkpoint_read.build().to(resolve_device(device))
    manifest = read_split(dataset, split)
    boxed = manifest.table["image"].isin([target.image for target in targets]).to_numpy(dtype=bool)
    if not boxed.any():
        raise PredictionsError(boxes, [f"none of its images is in {dataset.root}, split {split!r}: try --split all"])
    loaded = load_images(manifest.select(boxed), dataset, size_px=config.size_px)
    tries = _point_at_all(model, config, loaded, targets, batch_size=batch_size)
    rates, overall = hit_rates(tries), hit_rate(tries)
    document = {
        "checkpoint": str(checkpoint),
        "boxes": str(boxes),
        "split": split,
        "method": "Grad-CAM",
        "cells": cells_a_side(model, input_size_px=config.input_size_px),
        "level": INTERVAL_LEVEL,
        "findings": {name: rate.to_json() for name, rate in rates.items()},
        "all": overall.to_json(),
        "num_images_elsewhere": len({target.image for target in targets}) - int(boxed.sum()),
        "num_skipped_images": len(loaded.skipped),
    }
    for sentence in loaded.skipped:
        say(Console(stderr=True), f"skipped: {escape(sentence)}")
    if not as_json:
        _show_rates({**rates, "all": overall}, document, Console())
    return document


def _point_at_all(
    model: "JointAECNN",
    config: "ImagesConfig",
    loaded: "LoadedImages",
    targets: "tuple[Target, ...]",
    *,
    batch_size: int,
) -> "list[Try]":
    from aecnn.data.augmentation import to_input
    from aecnn.evaluation.explain import explain_images
    from aecnn.evaluation.pointing_game import point

    row_of = {name: row for row, name in enumerate(loaded.manifest.table["image"])}
    here = [target for target in targets if target.image in row_of]
    tries: list[Try] = []
    with progress_bar("explaining") as (progress, task):
        for start in range(0, len(here), batch_size):
            batch = here[start : start + batch_size]
            rows = np.array([row_of[target.image] for target in batch], dtype=np.int64)
            images: torch.Tensor = to_input(loaded.images.read(rows), config)
            heatmaps = explain_images(model, images, [target.finding for target in batch]).cpu().numpy()
            tries += [point(heatmap, target, config) for heatmap, target in zip(heatmaps, batch, strict=True)]
            progress.update(task, completed=len(tries), total=len(here))
    return tries


def _show_rates(rates: "dict[str, HitRate]", document: dict[str, Any], console: Console) -> None:
    table = table_of("finding", "images", "hit", "rate", "95 % interval", "by chance", "at the centre")
    for name, rate in rates.items():
        low, high = rate.interval
        figures = (
            f"{rate.hit_rate:.2f}",
            f"{low:.2f} – {high:.2f}",
            f"{rate.chance:.2f}",
            f"{rate.centre_hit_rate:.2f}",
        )
        table.add_row(name, str(rate.num_images), str(rate.num_hits), *figures)
    console.print(table)
    say(
        console,
        f"\nHit: the strongest point of a heatmap of {document['cells']} × {document['cells']} cells lies in the box. "
        "By chance: the boxes' share of the image. At the centre: a finger always on the image's centre.",
    )
    if document["num_images_elsewhere"]:
        say(console, f"{document['num_images_elsewhere']} boxed image(s) are not in this split of the dataset.")
