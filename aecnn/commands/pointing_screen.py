"""What `aecnn explain --boxes` counts, and how it looks: a table of hit rates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from aecnn.config import DatasetConfig, HeatmapMethod, Split
from aecnn.console import progress_bar, say, table_of
from aecnn.errors import PredictionsError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    import torch

    from aecnn.config import ImagesConfig
    from aecnn.data.manifest import Manifest
    from aecnn.data.source import LoadedImages
    from aecnn.evaluation.pointing_game import Target, Try
    from aecnn.model.joint import JointAECNN


def play_pointing_game(
    boxes: Path,
    checkpoint: Path,
    dataset: DatasetConfig,
    split: Split,
    *,
    method: HeatmapMethod,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """Explains every image that has a box; skipped images go to standard error.

    Raises:
        PredictionsError: None of the images with a box is in the split.
    """
    from aecnn.data.source import load_images
    from aecnn.evaluation.explain import METHOD_NAMES, cells_a_side
    from aecnn.evaluation.pointing_game import INTERVAL_LEVEL, hit_rate, hit_rates, read_boxes
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.training.device import resolve_device

    targets = read_boxes(boxes)
    checkpoint_read = load_checkpoint(checkpoint)
    config, model = checkpoint_read.metadata.images, checkpoint_read.build().to(resolve_device(device))
    boxed, num_elsewhere = _boxed(boxes, targets, dataset, split)
    loaded = load_images(boxed, dataset, size_px=config.size_px)
    for sentence in loaded.skipped:
        say(Console(stderr=True), f"skipped: {escape(sentence)}")
    tries = _point_at_all(model, config, loaded, targets, method=method, batch_size=batch_size)
    return {
        "checkpoint": str(checkpoint),
        "boxes": str(boxes),
        "split": split,
        "method": METHOD_NAMES[method],
        "cells": cells_a_side(model, input_size_px=config.input_size_px),
        "level": INTERVAL_LEVEL,
        "findings": {name: rate.to_json() for name, rate in hit_rates(tries).items()},
        "all": hit_rate(tries).to_json(),
        "num_images_elsewhere": num_elsewhere,
        "num_skipped_images": len(loaded.skipped),
    }


def show_hit_rates(document: dict[str, Any], console: Console) -> None:
    """Prints what `play_pointing_game` gave."""
    table = table_of("finding", "images", "hit", "rate", "95 % interval", "by chance", "at the centre")
    for name, rate in {**document["findings"], "all": document["all"]}.items():
        low, high = rate["interval"]
        figures = (
            f"{rate['hit_rate']:.2f}",
            f"{low:.2f} – {high:.2f}",
            f"{rate['chance']:.2f}",
            f"{rate['centre_hit_rate']:.2f}",
        )
        table.add_row(name, str(rate["num_images"]), str(rate["num_hits"]), *figures)
    console.print(table)
    heatmap = f"a {document['method']} heatmap of {document['cells']} × {document['cells']} cells"
    say(
        console,
        f"\nHit: the strongest point of {heatmap} lies in the box. "
        "By chance: the boxes' share of the image. At the centre: a finger always on the image's centre.",
    )
    if document["num_images_elsewhere"]:
        say(console, f"{document['num_images_elsewhere']} boxed image(s) are not in this split of the dataset.")


def _boxed(boxes: Path, targets: "tuple[Target, ...]", dataset: DatasetConfig, split: Split) -> "tuple[Manifest, int]":
    """The images of the split that have a box, and how many with a box are not in it."""
    from aecnn.data.manifest import read_split

    manifest = read_split(dataset, split)
    is_boxed = manifest.table["image"].isin([target.image for target in targets]).to_numpy(dtype=bool)
    if not is_boxed.any():
        raise PredictionsError(boxes, [f"none of its images is in {dataset.root}, split {split!r}: try --split all"])
    return manifest.select(is_boxed), len({target.image for target in targets}) - int(is_boxed.sum())


def _point_at_all(
    model: "JointAECNN",
    config: "ImagesConfig",
    loaded: "LoadedImages",
    targets: "tuple[Target, ...]",
    *,
    method: HeatmapMethod,
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
            heatmaps = explain_images(model, images, [target.finding for target in batch], method=method).cpu().numpy()
            tries += [point(heatmap, target, config) for heatmap, target in zip(heatmaps, batch, strict=True)]
            progress.update(task, completed=len(tries), total=len(here))
    return tries
