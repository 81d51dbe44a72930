"""The joint loss λ·BCE + (1−λ)·MSE (ICVGIP 2018, DOI 10.1145/3293353.3293408), masked where a finding is unknown.

Shapes: B images, 14 findings, S pixels a side. Every image counts the same and by itself: its BCE is the mean over its
own known findings, so that the gradient of one image never depends on which findings of another are known.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aecnn.model.joint import Output

AUX_WEIGHT = 0.2  # share of Inception-v3's auxiliary head in the BCE, 0.8 for the main one


class JointLoss(NamedTuple):
    """The loss and its two parts, each a scalar or one value an image, in fp32."""

    total: Tensor  # [] or [B]
    bce: Tensor  # [] or [B]
    mse: Tensor  # [] or [B]


def joint_loss(output: Output, images: Tensor, targets: Tensor, *, bce_weight: float) -> JointLoss:
    """Gives the means over the images of `joint_loss_per_image`, as scalars; zeros for an empty batch."""
    per_image = joint_loss_per_image(output, images, targets, bce_weight=bce_weight)
    num_images = max(len(images), 1)
    return JointLoss(*(part.sum() / num_images for part in per_image))


def joint_loss_per_image(output: Output, images: Tensor, targets: Tensor, *, bce_weight: float) -> JointLoss:
    """Gives λ·BCE + (1−λ)·MSE of each image.

    Args:
        output: What the model gave for the images; the auxiliary logits count where there are any.
        images: [B, 1, S, S] in [0, 1], what the reconstruction is compared with.
        targets: [B, 14] in {0, 1, NaN}; NaN is an unknown finding and adds nothing.
        bce_weight: λ, between 0 and 1.

    Returns:
        Three tensors [B]. An image with no known finding has a BCE of 0.
    """
    bce = masked_bce_per_image(output.logits, targets)
    if output.aux_logits is not None:
        bce = (1.0 - AUX_WEIGHT) * bce + AUX_WEIGHT * masked_bce_per_image(output.aux_logits, targets)
    mse = (output.reconstruction.float() - images.float()).square().mean(dim=(1, 2, 3))
    return JointLoss(total=bce_weight * bce + (1.0 - bce_weight) * mse, bce=bce, mse=mse)


def masked_bce_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """Gives each image's mean binary cross-entropy over its known findings [B], 0 where none is known.

    Args:
        logits: [B, 14].
        targets: [B, 14] in {0, 1, NaN}.
    """
    known = ~torch.isnan(targets)
    # The unknown are set to 0 before the loss, not after: 0 × NaN is NaN, in the gradient too.
    filled = torch.where(known, targets, torch.zeros_like(targets)).float()
    elementwise = F.binary_cross_entropy_with_logits(logits.float(), filled, reduction="none") * known
    return elementwise.sum(dim=1) / known.sum(dim=1).clamp(min=1)
