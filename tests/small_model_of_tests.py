"""A joint model of a few thousand weights: tests of privacy take many steps, and none of them is about the backbone."""

import torch
from torch import nn

from aecnn.model.autoencoder import Decoder, Encoder, initialise_interpolating
from aecnn.model.joint import JointAECNN


def small_model(*, seed=0, channels=8):
    """Gives the same model for the same seed; its classifier works in place, as torchvision's do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2),
            nn.GroupNorm(2, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 2 * channels, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * channels, 14),
        )
        encoder, decoder = Encoder(padding="replicate"), Decoder(padding="replicate")
        initialise_interpolating(encoder, decoder, generator=torch.default_generator)
    return JointAECNN(encoder=encoder, decoder=decoder, classifier=classifier, latent_size_px=None).train()
