"""Judging a model on one part of a dataset at hand."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from aecnn.config import DatasetConfig, ImagesConfig
from aecnn.data.manifest import Manifest
from aecnn.data.source import LoadedImages, load_images
from aecnn.evaluation.judging import Judging, Scored, judge
from aecnn.evaluation.metrics import Metrics, Reconstruction, mean_psnr_db, score
from aecnn.evaluation.outputs import Outputs, run_model
from aecnn.evaluation.predictions import labels_of
from aecnn.model.joint import JointAECNN
from aecnn.progress import OnProgress


@dataclass(frozen=True)
class Evaluation:
    """Figures, and what they were computed from."""

    metrics: Metrics
    outputs: Outputs
    loaded: LoadedImages


def evaluate_split(
    model: JointAECNN,
    images_config: ImagesConfig,
    manifest: Manifest,
    *,
    dataset: DatasetConfig,
    device: torch.device,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Gives AUROC, average precision and reconstruction quality over a manifest's images.

    Raises:
        ManifestError: Unreadable images under ``refuse``.
    """
    loaded = load_images(manifest, dataset, size_px=images_config.size_px)
    return evaluate_images(model, images_config, loaded, device=device, batch_size=batch_size, on_progress=on_progress)


def evaluate_images(
    model: JointAECNN,
    images_config: ImagesConfig,
    loaded: LoadedImages,
    *,
    device: torch.device,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Does the same over images that are decoded already."""
    outputs = run_model(
        model,
        loaded,
        np.arange(len(loaded.manifest)),
        images_config,
        batch_size=batch_size,
        device=device,
        crops=images_config.test_crops,
        with_ssim=True,
        on_progress=on_progress,
    )
    reconstruction = Reconstruction(
        psnr_db=mean_psnr_db(outputs.mse),
        ssim=float("nan") if outputs.ssim is None else float(outputs.ssim.mean()),
    )
    metrics = score(
        outputs.logits,
        loaded.manifest.targets,
        loaded.manifest.table["patient"].tolist(),
        reconstruction=reconstruction,
        num_skipped_images=len(loaded.skipped),
    )
    return Evaluation(metrics, outputs, loaded)


def judge_evaluation(evaluation: Evaluation, how: Judging) -> Metrics:
    """Gives the figures with intervals, calibration, subgroups and the view-position baseline added."""
    labels = labels_of(evaluation.loaded.manifest)
    logits = evaluation.outputs.logits.astype(np.float64)
    scored = Scored(logits, expit(logits), labels.targets, labels.patients)
    return judge(evaluation.metrics, scored, labels.groups, how)
