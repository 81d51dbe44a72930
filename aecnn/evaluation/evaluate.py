"""Judging a model on one part of a dataset at hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from aecnn.config import ImagesConfig
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.source import LoadedImages, load_images
from aecnn.errors import ManifestError
from aecnn.evaluation.metrics import Metrics, Reconstruction, psnr_db, score
from aecnn.evaluation.outputs import Outputs, run_model
from aecnn.model.joint import JointAECNN

Split = Literal["test", "train_val", "all"]


@dataclass(frozen=True)
class Evaluation:
    """Figures, and what they were computed from."""

    metrics: Metrics
    outputs: Outputs
    loaded: LoadedImages


def read_split(root: Path, split: Split, *, require_images: bool = True) -> Manifest:
    """Reads the images of one official list, or all of them.

    Raises:
        ManifestError: The dataset is faulty, or has no such list.
    """
    manifest = read_manifest(root, require_images=require_images)
    if split == "all":
        return manifest
    chosen = manifest.of_split(split)
    if len(chosen) == 0:
        raise ManifestError(
            root, [f"has no image in the split {split!r}: add {split}_list.txt, or evaluate the split 'all'"]
        )
    return chosen


def evaluate_split(
    model: JointAECNN,
    images_config: ImagesConfig,
    manifest: Manifest,
    *,
    on_unreadable: Literal["refuse", "skip"],
    device: torch.device,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Gives AUROC, average precision and reconstruction quality over a manifest's images.

    Raises:
        ManifestError: Unreadable images under ``refuse``.
    """
    loaded = load_images(manifest, size_px=images_config.size_px, on_unreadable=on_unreadable)
    outputs = run_model(
        model,
        loaded,
        np.arange(len(loaded.manifest)),
        images_config,
        batch_size=batch_size,
        device=device,
        with_ssim=True,
        on_progress=on_progress,
    )
    reconstruction = Reconstruction(
        psnr_db=float(psnr_db(outputs.mse).mean()),
        ssim=float("nan") if outputs.ssim is None else float(outputs.ssim.mean()),
    )
    metrics = score(
        outputs.logits,
        loaded.manifest.targets,
        loaded.manifest.table["patient"].tolist(),
        reconstruction=reconstruction,
    )
    return Evaluation(metrics, outputs, loaded)
