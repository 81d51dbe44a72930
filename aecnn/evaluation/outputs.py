"""What the model says about every image of a set, in one pass without gradients.

Evaluation draws no random number, so it never moves a training run.
Shapes: N images, F findings, S = input side in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_msssim import ssim as structural_similarity
from torch import Tensor

from aecnn.config import ImagesConfig, TestCrops
from aecnn.data.augmentation import CENTRE_CROP, ten_crops, to_input
from aecnn.data.buffer import DeviceReader
from aecnn.data.source import LoadedImages
from aecnn.findings import NUM_FINDINGS
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import masked_bce_per_image
from aecnn.progress import OnProgress
from aecnn.training.batches import Rows


@dataclass(frozen=True)
class Outputs:
    """Per-image results of one pass."""

    logits: NDArray[np.float32]  # [N, F]
    bce: NDArray[np.float64]  # [N]: mean over the image's labelled findings
    mse: NDArray[np.float64]  # [N]: mean over its pixels, intensities in [0, 1]
    ssim: NDArray[np.float64] | None  # [N], where asked for


def run_model(
    model: JointAECNN,
    data: LoadedImages,
    rows: Rows,
    images_config: ImagesConfig,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    crops: TestCrops = "centre",
    with_ssim: bool = False,
    on_progress: OnProgress | None = None,
) -> Outputs:
    """Runs the model on the chosen images. The model's training mode is put back afterwards.

    Args:
        model: Weights to judge.
        data: Decoded images with their targets.
        rows: Which images of `data`.
        images_config: Size and crop of the model's input.
        batch_size: Images in one forward pass.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``.
        crops: ``centre``, or ``ten``: the logits are then those of the mean of the ten crops' probabilities, as the
            paper tests. Reconstructions are judged on the centre crop.
        with_ssim: Also compute each reconstruction's structural similarity (Wang et al. 2004; 11 px Gaussian window).
        on_progress: Called with images done and images in all.
    """
    was_training = model.training
    model.to(device).eval()
    targets = torch.from_numpy(data.manifest.targets)
    reader = DeviceReader(data.images, device)
    parts: list[list[Tensor]] = []
    with torch.inference_mode():
        for start in range(0, rows.size, batch_size):
            batch = rows[start : start + batch_size]
            pixels = reader.read(batch)
            images = to_input(pixels, images_config)
            views = ten_crops(pixels, images_config) if crops == "ten" else images[None]
            outputs = [_forward(model, view, precision) for view in views]
            logits = (
                logit_of_mean(torch.stack([of_view for of_view, _ in outputs])) if crops == "ten" else outputs[0][0]
            )
            reconstruction = outputs[CENTRE_CROP if crops == "ten" else 0][1]
            bce = masked_bce_per_image(logits, targets[torch.from_numpy(batch)].to(device))
            mse = (reconstruction - images).square().flatten(1).mean(1)
            similar = (
                structural_similarity(images, reconstruction, data_range=1.0, size_average=False)
                if with_ssim
                else torch.empty(len(batch))
            )
            parts.append([logits.cpu(), bce.cpu(), mse.cpu(), similar.cpu()])
            if on_progress is not None:
                on_progress(min(start + batch_size, rows.size), rows.size)
    model.train(was_training)
    return _joined(parts, with_ssim=with_ssim)


def logit_of_mean(logits: Tensor) -> Tensor:
    """Gives the logit of the mean probability over the first dimension, exact where probabilities round to 0 or 1.

    Args:
        logits: [K, ...].
    """
    positive, negative = F.logsigmoid(logits), F.logsigmoid(-logits)  # log p and log (1 − p)
    return positive.logsumexp(0) - negative.logsumexp(0)


def _forward(model: JointAECNN, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Logits [B, F] and reconstruction [B, 1, S, S] in fp32."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = model(images)
    return output.logits.float(), output.reconstruction.float()


def _joined(parts: list[list[Tensor]], *, with_ssim: bool) -> Outputs:
    if not parts:
        none = np.zeros(0)
        return Outputs(np.zeros((0, NUM_FINDINGS), dtype=np.float32), none, none, none if with_ssim else None)
    logits, bce, mse, ssim = (torch.cat(column) for column in zip(*parts, strict=True))
    return Outputs(
        logits=logits.numpy(),
        bce=bce.double().numpy(),
        mse=mse.double().numpy(),
        ssim=ssim.double().numpy() if with_ssim else None,
    )
