"""From decoded radiographs to the model's input, for a whole batch at once on the device that holds it.

Shapes: B images, S = ``size_px`` as decoded, C = ``input_size_px`` as the model sees it.
The paper's joint stage crops 896 of 1024 px, rotates by up to ±5° and mirrors (AE-CNN, ICVGIP 2018, public code). We
rotate about the crop's centre and read from the whole image, so a rotated crop has no black corners.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aecnn.config import ImagesConfig

CENTRE_CROP = 4  # of the ten


def to_input(images: Tensor, config: ImagesConfig) -> Tensor:
    """Gives the centre crop as float in [0, 1], without augmentation.

    Args:
        images: uint8 [B, 1, S, S].
        config: Sizes.

    Returns:
        float32 [B, 1, C, C].
    """
    margin = centre_margin(images.shape[-1], config.input_size_px)
    crop = images[..., margin : margin + config.input_size_px, margin : margin + config.input_size_px]
    return crop.float().div_(255.0)


def centre_margin(size_px: int, crop_px: int) -> int:
    """Where a centre crop begins; of an odd margin torchvision rounds the half to the even number, and so do we."""
    return round((size_px - crop_px) / 2)


def ten_crops(images: Tensor, config: ImagesConfig) -> Tensor:
    """Gives the four corners and the centre of each image and of its mirror image, in torchvision's order (TenCrop).

    Args:
        images: uint8 [B, 1, S, S].
        config: Sizes.

    Returns:
        float32 [10, B, 1, C, C] in [0, 1]: top left, top right, bottom left, bottom right and centre, then the same of
        the mirrored images. Number `CENTRE_CROP` is what `to_input` gives.
    """
    end, crop = images.shape[-1] - config.input_size_px, config.input_size_px
    centre = centre_margin(images.shape[-1], crop)
    corners = ((0, 0), (0, end), (end, 0), (end, end), (centre, centre))
    views = [
        view[..., top : top + crop, left : left + crop] for view in (images, images.flip(-1)) for top, left in corners
    ]
    return torch.stack(views).float().div_(255.0)


@dataclass(frozen=True)
class Views:
    """What is drawn for each image of a batch."""

    top_left: Tensor  # int [B, 2], row and column of the crop's corner
    angle_deg: Tensor  # float [B], anticlockwise
    mirror: Tensor  # bool [B]


def augment(images: Tensor, config: ImagesConfig, generator: torch.Generator) -> Tensor:
    """Gives a random crop, rotation and mirror image of each radiograph as float in [0, 1].

    Draws come from a CPU generator whatever the device, so that a seed means the same everywhere.

    Args:
        images: uint8 [B, 1, S, S], on any device.
        config: Crop size, rotation range, mirror.
        generator: CPU generator; each image has its own draws.

    Returns:
        float32 [B, 1, C, C].
    """
    batch, size, crop = images.shape[0], images.shape[-1], config.input_size_px
    top_left = torch.randint(0, size - crop + 1, (batch, 2), generator=generator)
    angle_deg = (torch.rand(batch, generator=generator) * 2.0 - 1.0) * config.rotation_deg
    mirror = (torch.rand(batch, generator=generator) < 0.5) & config.horizontal_flip
    return as_drawn(images, config, Views(top_left, angle_deg, mirror))


def as_drawn(images: Tensor, config: ImagesConfig, views: Views) -> Tensor:
    """Gives each radiograph [B, 1, S, S] as its view shows it, float32 [B, 1, C, C] in [0, 1]."""
    crop = config.input_size_px
    if config.rotation_deg == 0.0:
        crops = _crop_exactly(images, views.top_left.to(images.device), views.mirror.to(images.device), crop)
        return crops.float().div_(255.0)
    return crop_rotated(images.float().div_(255.0), views.top_left, views.angle_deg, views.mirror, crop)


def _crop_exactly(images: Tensor, top_left: Tensor, mirror: Tensor, crop: int) -> Tensor:
    """Crops and mirrors by indexing: no interpolation, [B, 1, C, C] of the input's dtype."""
    steps = torch.arange(crop, device=images.device)
    rows = top_left[:, 0, None] + steps  # [B, C]
    columns = top_left[:, 1, None] + torch.where(mirror[:, None], crop - 1 - steps, steps)  # [B, C]
    image = torch.arange(images.shape[0], device=images.device)[:, None, None]
    return images[image, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def crop_rotated(images: Tensor, top_left: Tensor, angle_deg: Tensor, mirror: Tensor, crop: int) -> Tensor:
    """Rotates each image about the centre of its crop, then crops and mirrors, in one bilinear look-up.

    Args:
        images: float [B, 1, S, S].
        top_left: int [B, 2], row and column of each crop's corner.
        angle_deg: float [B], anticlockwise.
        mirror: bool [B].
        crop: C.

    Returns:
        float [B, 1, C, C]; where a look-up falls outside the image, the border pixel repeats.
    """
    size = images.shape[-1]
    centre = (top_left.float() + crop / 2.0) * (2.0 / size) - 1.0  # in grid_sample's units: −1 … 1
    scale = crop / size
    cosine, sine = torch.cos(angle_deg * (math.pi / 180.0)), torch.sin(angle_deg * (math.pi / 180.0))
    sign = torch.where(mirror, -1.0, 1.0)
    across = torch.stack([cosine * sign * scale, -sine * scale, centre[:, 1]], dim=-1)
    down = torch.stack([sine * sign * scale, cosine * scale, centre[:, 0]], dim=-1)
    theta = torch.stack([across, down], dim=1).to(images.device, images.dtype)  # [B, 2, 3]
    grid = F.affine_grid(theta, [images.shape[0], 1, crop, crop], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
