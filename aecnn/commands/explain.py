"""The command `explain`: where the model looked, on one radiograph or against a radiologist's boxes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.commands.options import DeviceOption, faults_of_output
from aecnn.commands.pointing_screen import play_pointing_game, show_hit_rates
from aecnn.config import HeatmapMethod, OnUnreadable, Split, load_dataset
from aecnn.console import JsonOption, print_json, say
from aecnn.errors import ConfigError, UnknownFindingError
from aecnn.findings import FINDINGS, finding_index

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    import numpy as np
    from numpy.typing import NDArray

    from aecnn.config import ImagesConfig

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
    method: Annotated[
        HeatmapMethod, typer.Option(help="hires-cam points better on small images: docs/using-a-model.md.")
    ] = "grad-cam",
    split: Annotated[Split, typer.Option(help="With --boxes: which official list of --data.")] = "test",
    on_unreadable: Annotated[
        OnUnreadable | None,
        typer.Option(help="With --boxes: refuse unreadable images (the default), or skip them.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --boxes: images explained at a time.")] = 8,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Show where the model looked for a finding (Grad-CAM), or count how often that is in a radiologist's box.

    With an IMAGE: a picture of the heatmap over the radiograph. With --boxes and --data: the pointing game's hit rate
    by finding. A heatmap tells what moved the model's answer, not whether the finding is there.
    """
    findings = _check_options(image, checkpoint, finding or [], output, boxes, data)
    from aecnn.evaluation.explain import require_captum

    require_captum()
    if image is not None and output is not None and checkpoint is not None:
        document = _explain_one(image, checkpoint, findings, output, method=method, device=device)
        if json_:
            print_json(document)
        else:
            _show_one(document, Console())
    elif boxes is not None and data is not None and checkpoint is not None:
        dataset = load_dataset(data)
        if on_unreadable is not None:
            dataset = dataset.model_copy(update={"on_unreadable": on_unreadable})
        document = play_pointing_game(
            boxes, checkpoint, dataset, split, method=method, batch_size=batch_size, device=device
        )
        if json_:
            print_json(document)
        else:
            show_hit_rates(document, Console())


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
        if not image.is_file():
            faults.append(f"IMAGE {image} is no file: give a radiograph")
        faults += _faults_of_output(output, image)
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


def _faults_of_output(output: Path | None, image: Path) -> list[str]:
    faults = faults_of_output(output, suffix=".png", what="picture")
    if faults or output is None or not output.exists():
        return faults
    if image.is_file() and output.samefile(image):
        return [f"--output {output} is the radiograph itself: give another name"]
    from aecnn.evaluation.overlay import is_overlay

    try:
        if is_overlay(output):
            return []
    except OSError as error:
        return [f"--output {output} is there already and cannot be read ({error.strerror}): give another name"]
    return [f"--output {output} is there already and is no picture of this command: give another name"]


def _explain_one(
    image: Path, checkpoint: Path, findings: list[str], output: Path, *, method: HeatmapMethod, device: str
) -> dict[str, Any]:
    import torch

    from aecnn.data.augmentation import to_input
    from aecnn.data.images import open_content, read_file, square_and_scale
    from aecnn.evaluation.explain import METHOD_NAMES, cells_a_side, explain_images
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
    heatmaps = explain_images(model, seen.expand(len(names), -1, -1, -1), names, method=method).cpu().numpy()
    cells = cells_a_side(model, input_size_px=config.input_size_px)
    note = f"{checkpoint.name} at {config.input_size_px} px, heatmap of {cells} × {cells} cells. {NOT_CLINICAL}"
    of_names = {name: (probabilities[name], heatmap) for name, heatmap in zip(names, heatmaps, strict=True)}
    _draw(output, grey, of_names, config, method=METHOD_NAMES[method], title=image.name, note=note)
    return {
        "image": str(image),
        "checkpoint": str(checkpoint),
        "output": str(output),
        "method": METHOD_NAMES[method],
        "explained": names,
        "without_evidence": [name for name, (_, heatmap) in of_names.items() if not heatmap.any()],
        "cells": cells,
        "probabilities": {name: round(value, 6) for name, value in probabilities.items()},
    }


def _draw(
    output: Path,
    grey: "NDArray[np.uint8]",
    of_names: "dict[str, tuple[float, NDArray[np.float32]]]",
    config: "ImagesConfig",
    *,
    method: str,
    title: str,
    note: str,
) -> None:
    from aecnn.evaluation.explain import on_radiograph
    from aecnn.evaluation.overlay import Explained, draw_overlay

    height, width = grey.shape
    explained = [
        Explained(name, probability, on_radiograph(heatmap, config, height_px=height, width_px=width))
        for name, (probability, heatmap) in of_names.items()
    ]
    draw_overlay(output, grey, explained, method=method, title=title, note=note)


def _show_one(document: dict[str, Any], console: Console) -> None:
    for name in document["explained"]:
        say(console, f"{name}: probability [bold]{document['probabilities'][name]:.4f}[/]")
    for name in document["without_evidence"]:
        say(console, f"[yellow]warning[/] nothing in the image speaks for {name}: its heatmap is empty")
    say(console, f"Written: {escape(document['output'])}. {NOT_CLINICAL}")
