"""The three normalisations of a backbone: `batch` as torchvision has it, `group` and `frozen`.

`group` (Wu & He, ECCV 2018) and `frozen` treat every image by itself, so they work with a batch of one image and with
per-sample gradients; `batch` does neither.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecnn.config import Normalisation

MAX_GROUPS = 32  # Wu & He, section 4: accuracy is flat around 32 groups


class FrozenNorm2d(nn.Module):
    """Batch normalisation whose statistics never move: those of pretrained weights, kept as buffers.

    It is no subclass of BatchNorm: per-sample gradient libraries refuse those, frozen or not.

    Args:
        num_channels: Channels C of its input.
        eps: Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Gives the normalised features [B, C, H, W]; the same in training and evaluation mode."""
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def replace_normalisation(module: nn.Module, normalisation: Normalisation, *, train_affine: bool) -> None:
    """Puts the chosen normalisation in place of every batch normalisation of a network, keeping scale and shift.

    Args:
        module: The network, changed in place.
        normalisation: `batch` changes nothing.
        train_affine: Whether scale and shift of `frozen` layers train; `group` always trains them.
    """
    if normalisation == "batch":
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                layer = _group(child) if normalisation == "group" else _frozen(child, train_affine=train_affine)
                setattr(parent, name, layer)


def _group(source: nn.BatchNorm2d) -> nn.GroupNorm:
    # The largest power of two up to 32 that divides the channels: DenseNet-161 and Inception-v3 have 48, 80 and 144.
    groups = math.gcd(MAX_GROUPS, source.num_features)
    layer = nn.GroupNorm(groups, source.num_features, eps=source.eps)
    with torch.no_grad():
        layer.weight.copy_(source.weight)
        layer.bias.copy_(source.bias)
    return layer


def _frozen(source: nn.BatchNorm2d, *, train_affine: bool) -> FrozenNorm2d:
    layer = FrozenNorm2d(source.num_features, eps=source.eps)
    state = source.state_dict()
    state.pop("num_batches_tracked", None)
    layer.load_state_dict(state)
    layer.weight.requires_grad_(train_affine)
    layer.bias.requires_grad_(train_affine)
    return layer
