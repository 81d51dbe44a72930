"""The classifier of the joint model: one of torchvision's networks with a head for the fourteen findings.

Shapes: [B, 3, S, S] → [B, 14] logits. ImageNet weights are the first that torchvision published (`IMAGENET1K_V1`).
"""

import hashlib
from pathlib import Path
from typing import get_args
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights  # type: ignore[attr-defined]

from aecnn.config import DOWNSCALE, Backbone, ModelConfig, Normalisation
from aecnn.errors import ModelError
from aecnn.findings import NUM_FINDINGS
from aecnn.model.normalisation import replace_normalisation
from aecnn.model.weights import rename_old

INCEPTION_SIZE_PX = 299  # the input Inception-v3 was designed for; a latent of another size is resized to it
NUM_IMAGENET_CLASSES = 1000


def _min_input_size_px(backbone: Backbone) -> int:
    # DenseNet halves its map five times and pools the last one: below a latent of 29 px nothing is left, 32 is the
    # first whole one. ResNet halves with padding and never runs out; with a latent of 16 px its last two of four stages
    # see one pixel each, with 8 px the last three. Inception-v3 always sees 299 px, but resized from fewer than 16 px
    # those carry nothing a kernel could use.
    return 128 if backbone.startswith("densenet") else 64


MIN_INPUT_SIZE_PX: dict[Backbone, int] = {name: _min_input_size_px(name) for name in get_args(Backbone)}


def check_input_size(backbone: Backbone, *, input_size_px: int) -> None:
    """Refuses an input that the backbone or the autoencoder cannot take.

    Raises:
        ModelError: Below the backbone's minimum, or not divisible by 4.
    """
    minimum = MIN_INPUT_SIZE_PX[backbone]
    if input_size_px < minimum:
        raise ModelError(
            f"input size {input_size_px} px is too small for {backbone}: it needs at least {minimum} px "
            f"(a latent of {minimum // DOWNSCALE} px); raise images.size_px or choose another backbone"
        )
    if input_size_px % DOWNSCALE:
        raise ModelError(f"input size {input_size_px} px is not divisible by {DOWNSCALE}: use a multiple of 4")


def min_batch_size(normalisation: Normalisation) -> int:
    """Gives the fewest images a training batch may hold.

    Batch normalisation needs two: of one image, the 1×1 maps of a small input, and of Inception-v3's auxiliary head
    at any size, have no variance.
    """
    return 2 if normalisation == "batch" else 1


def build_backbone(config: ModelConfig, *, fetch_weights: bool) -> nn.Module:
    """Builds the torchvision network with a head of fourteen logits and the chosen normalisation.

    Args:
        config: Backbone, weights and normalisation.
        fetch_weights: Whether to load the ImageNet weights the config names; without, the caller loads all weights.

    Raises:
        ModelError: The ImageNet weights cannot be had.
    """
    network = _torchvision_network(config.backbone)
    if fetch_weights and config.weights == "imagenet":
        _load_imagenet(network, config.backbone)
    replace_normalisation(network, config.normalisation, train_affine=config.train_normalisation_affine)
    _replace_head(network)
    return network


def _torchvision_network(backbone: Backbone) -> nn.Module:
    if backbone == "inception_v3":
        # transform_input: its weights expect (x − 0.5) / 0.5, and like every backbone it is given ImageNet's scaling.
        inception: nn.Module = torchvision.models.inception_v3(
            weights=None, num_classes=NUM_IMAGENET_CLASSES, aux_logits=True, transform_input=True, init_weights=True
        )
        return inception
    network: nn.Module = get_model(backbone, weights=None, num_classes=NUM_IMAGENET_CLASSES)
    return network


def _replace_head(network: nn.Module) -> None:
    name = "fc" if hasattr(network, "fc") else "classifier"
    setattr(network, name, nn.Linear(getattr(network, name).in_features, NUM_FINDINGS))
    auxiliary = getattr(network, "AuxLogits", None)
    if auxiliary is not None:
        auxiliary.fc = nn.Linear(auxiliary.fc.in_features, NUM_FINDINGS)


def _load_imagenet(network: nn.Module, backbone: Backbone) -> None:
    url = get_model_weights(backbone)["IMAGENET1K_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    fingerprint = file.stem.rpartition("-")[2]  # torchvision's file names end in the first digits of their SHA-256
    if not file.exists():
        _download(url, file, fingerprint=fingerprint, backbone=backbone)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(fingerprint):
        raise ModelError(
            f"ImageNet weights of {backbone} at {file} are damaged: their SHA-256 starts with {found[:8]}, "
            f"expected {fingerprint}; delete the file and fetch {url} again"
        )
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict({rename_old(name): tensor for name, tensor in state.items()})


def _download(url: str, file: Path, *, fingerprint: str, backbone: Backbone) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=fingerprint, progress=False)
    except (OSError, RuntimeError) as error:  # no network; a download that broke off
        raise ModelError(
            f"ImageNet weights of {backbone} are not on this machine and cannot be downloaded ({error}): "
            f"fetch {url} on another machine and place it at {file}, or set model.weights: none"
        ) from error
