"""Augmentation whose draws nobody can find out: words of the system's entropy, each image's its own.

A generator of PyTorch's on the CPU begins in one of 2³² states whatever its seed. Where patients share it, its draws
for all who come later shift with one patient more, and whoever tried all states would see the shift in gradients that
no clip bounds. Here no image's draws depend on who else is there.

Shapes: B images, S pixels a side as decoded, C as the model sees it.
"""

import torch
from torch import Tensor

from aecnn.config import ImagesConfig
from aecnn.data.augmentation import Views, as_drawn
from aecnn.training.privacy.entropy import Entropy, uniform

_DRAWS_PER_IMAGE = 4  # row, column, angle, mirror


def augment_in_secret(images: Tensor, config: ImagesConfig, entropy: Entropy) -> Tensor:
    """Gives a random crop, rotation and mirror image of each radiograph as float in [0, 1].

    Args:
        images: uint8 [B, 1, S, S], on any device.
        config: Crop size, rotation range, mirror.
        entropy: The source of all draws.

    Returns:
        float32 [B, 1, C, C].
    """
    drawn = torch.from_numpy(uniform(entropy, _DRAWS_PER_IMAGE * len(images)).reshape(-1, _DRAWS_PER_IMAGE))
    places = images.shape[-1] - config.input_size_px + 1  # a draw is below 1 by 2⁻⁵³, and its product below this
    return as_drawn(
        images,
        config,
        Views(
            top_left=(drawn[:, :2] * places).long(),
            angle_deg=((drawn[:, 2] * 2.0 - 1.0) * config.rotation_deg).float(),
            mirror=(drawn[:, 3] < 0.5) & config.horizontal_flip,
        ),
    )
