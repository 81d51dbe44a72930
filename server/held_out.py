"""The centre's own test images: the global model is scored on them, and never chosen by them."""

import logging
from dataclasses import dataclass

import torch

from aecnn.config import DatasetConfig, Plan
from aecnn.data.manifest import read_split
from aecnn.data.source import LoadedImages, load_images
from aecnn.evaluation.evaluate import Evaluation, evaluate_images
from aecnn.model.joint import JointAECNN, build_architecture
from aecnn.model.weights import Weights, load_weights
from aecnn.training.device import resolve_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Decoded test images, and a model to fill with the weights that are scored."""

    images: LoadedImages
    model: JointAECNN
    plan: Plan
    device: torch.device

    @classmethod
    def read(cls, data: DatasetConfig, plan: Plan) -> "HeldOut":
        """Decodes the test split, once for all rounds.

        Raises:
            ManifestError: The dataset is faulty, or has unreadable images and is not to skip them.
        """
        images = load_images(read_split(data, "test"), data, size_px=plan.images.size_px)
        for sentence in images.warnings:
            log.warning("Test images: %s", sentence)
        for sentence in images.skipped:
            log.warning("Skipped a test image: %s", sentence)
        model = build_architecture(plan.model, input_size_px=plan.images.input_size_px)
        return cls(images, model, plan, resolve_device("auto"))

    def score(self, weights: Weights) -> Evaluation:
        """Gives the figures of a model on all test images."""
        load_weights(self.model, weights)
        return evaluate_images(self.model, self.plan.images, self.images, device=self.device)
