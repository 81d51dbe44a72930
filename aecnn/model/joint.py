"""The joint AE-CNN: one forward pass compresses, rebuilds and classifies a radiograph (ICVGIP 2018).

Shapes: B images, S pixels a side, 14 findings. The clamped latent is repeated to three channels and scaled like an
ImageNet picture before the classifier sees it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecnn.config import ModelConfig
from aecnn.errors import ModelError
from aecnn.model.autoencoder import Decoder, Encoder, initialise_interpolating
from aecnn.model.backbone import INCEPTION_SIZE_PX, build_backbone, check_input_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Output(NamedTuple):
    """Everything one forward pass gives."""

    logits: Tensor  # [B, 14]
    aux_logits: Tensor | None  # [B, 14] of Inception-v3's auxiliary head, in training mode only
    reconstruction: Tensor  # [B, 1, S, S] in [0, 1]
    latent: Tensor  # [B, 1, S/4, S/4] in [0, 1]


class JointAECNN(nn.Module):
    """Encoder, decoder and classifier trained as one.

    Args:
        encoder: [B, 1, S, S] → [B, 1, S/4, S/4].
        decoder: The way back.
        classifier: A torchvision network, [B, 3, …] → [B, 14], or a pair with auxiliary logits in training.
        latent_size_px: Side the latent is resized to before the classifier, None to leave it.
    """

    imagenet_mean: Tensor
    imagenet_std: Tensor

    def __init__(
        self, *, encoder: Encoder, decoder: Decoder, classifier: nn.Module, latent_size_px: int | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = classifier
        self.latent_size_px = latent_size_px
        # Not persistent: constants are no weights, and must not travel as such.
        self.register_buffer("imagenet_mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("imagenet_std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Output:
        """Compresses, rebuilds and classifies images [B, 1, S, S] in [0, 1]."""
        latent = self.encode(images)
        logits, aux_logits = self.classify(latent)
        return Output(logits, aux_logits, self.decode(latent), latent)

    def encode(self, images: Tensor) -> Tensor:
        """Gives the latent [B, 1, S/4, S/4] in [0, 1] of images [B, 1, S, S] in [0, 1]."""
        latent: Tensor = self.encoder(images)
        return latent.clamp(0.0, 1.0)

    def decode(self, latent: Tensor) -> Tensor:
        """Gives the reconstruction [B, 1, S, S] in [0, 1] of a latent [B, 1, S/4, S/4]."""
        reconstruction: Tensor = self.decoder(latent)
        return reconstruction.clamp(0.0, 1.0)

    def classify(self, latent: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gives the logits [B, 14] of a latent, and the auxiliary ones where the classifier gives them."""
        if self.latent_size_px is not None:
            size = (self.latent_size_px, self.latent_size_px)
            latent = F.interpolate(latent, size=size, mode="bilinear", align_corners=False)
        pictures = (latent - self.imagenet_mean) / self.imagenet_std  # [B, 3, ·, ·]: one channel broadcasts to three
        result = self.classifier(pictures)
        if isinstance(result, tuple):
            logits, aux_logits = result
            return logits, aux_logits
        return result, None


def build_model(config: ModelConfig, *, seed: int, input_size_px: int) -> JointAECNN:
    """Builds the model a run starts from, on the CPU: all its randomness comes from the seed.

    Args:
        config: Backbone, its weights and normalisation, the autoencoder's padding.
        seed: Same seed, same weights; the global random state stays as it was.
        input_size_px: Side S of the images it will see.

    Raises:
        ModelError: The backbone cannot take such images, or its pretrained weights cannot be had.
    """
    if config.normalisation == "frozen" and config.weights == "none":
        raise ModelError(
            "normalisation 'frozen' keeps the statistics of pretrained weights, and weights is 'none': "
            "set weights: imagenet, or normalisation: group"
        )
    return _build(config, seed=seed, input_size_px=input_size_px, fetch_weights=True)


def build_architecture(config: ModelConfig, *, input_size_px: int) -> JointAECNN:
    """Builds a model whose weights are about to be loaded: no pretrained weights are fetched for it.

    A hospital that receives weights, and a reader of a checkpoint, need no download. Its initial weights mean nothing.

    Raises:
        ModelError: The backbone cannot take such images.
    """
    return _build(config, seed=0, input_size_px=input_size_px, fetch_weights=False)


def _build(config: ModelConfig, *, seed: int, input_size_px: int, fetch_weights: bool) -> JointAECNN:
    check_input_size(config.backbone, input_size_px=input_size_px)
    # torchvision draws from the global generator; only the CPU's is used, so only that is seeded and put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = JointAECNN(
            encoder=Encoder(padding=config.padding),
            decoder=Decoder(padding=config.padding),
            classifier=build_backbone(config, fetch_weights=fetch_weights),
            latent_size_px=INCEPTION_SIZE_PX if config.backbone == "inception_v3" else None,
        )
        initialise_interpolating(model.encoder, model.decoder, generator=torch.default_generator)
    return model
