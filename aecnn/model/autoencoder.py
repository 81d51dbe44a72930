"""The autoencoder of the joint AE-CNN (ICVGIP 2018, DOI 10.1145/3293353.3293408), and a start that is never dead.

Shapes: B images, S pixels a side. Encoder [B, 1, S, S] → [B, 1, S/4, S/4]; decoder back. Neither clamps: the joint
model does, in training as in use. 865 + 160 = 1,025 parameters.

The paper pads with zeros, which costs 2.6 dB at 1024 px and 5.4 dB at 256 px, all at the border; `replicate` repeats
the outermost pixel. Either is done with `F.pad` before a convolution without padding, since per-sample gradient
libraries ignore `padding_mode`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecnn.config import DOWNSCALE, Padding

NUM_HIDDEN_CHANNELS = 32
ENCODER_KERNEL_PX = 5
ENCODER_PADDING_PX = 2
DECODER_KERNEL_PX = 3
DECODER_PADDING_PX = 1

# The separable linear code that loses least of a random walk x, the limit ρ → 1 of a first-order Markov image row with
# covariance ρ^|s−t|. Latent i weighs pixels 4i−2 … 4i+2; pixel 4i+p is rebuilt from latents i−1, i and i+1.
# Alternating least squares: given encoder taps e, the decoder is Cov(x, z)·Cov(z)⁻¹; given the decoder, e solves the
# normal equations of the mean squared error; e and each decoder row are scaled to sum 1, so a flat image stays flat.
# The weights lean to the right because the five pixels are centred on the first of the four they stand for.
# On radiographs it is 0.4 dB (1024 px) to 0.8 dB (256 px) above area-down/bilinear-up.
ENCODER_TAPS = (0.0456, 0.1489, 0.2667, 0.2757, 0.2631)
DECODER_TAPS = (
    (0.0250, 1.1174, -0.1424),
    (-0.1427, 1.1548, -0.0121),
    (-0.1773, 0.9262, 0.2511),
    (-0.0891, 0.4656, 0.6235),
)
DIVERSITY = 0.9  # how far a hidden channel's tap may be from the common one, relative; below 1 keeps it positive


def _pad(images: Tensor, padding_px: int, padding: Padding) -> Tensor:
    mode = "replicate" if padding == "replicate" else "constant"
    return F.pad(images, (padding_px,) * 4, mode=mode)


class Encoder(nn.Sequential):
    """Compresses a radiograph sixteenfold: 1→32 channels with stride 4, ELU, 32→1."""

    def __init__(self, *, padding: Padding) -> None:
        super().__init__(
            nn.Conv2d(1, NUM_HIDDEN_CHANNELS, ENCODER_KERNEL_PX, stride=DOWNSCALE),
            nn.ELU(),
            nn.Conv2d(NUM_HIDDEN_CHANNELS, 1, 1),
        )
        self.padding: Padding = padding

    def forward(self, images: Tensor) -> Tensor:
        """Gives the latent [B, 1, S/4, S/4], not clamped, of images [B, 1, S, S]."""
        features = _pad(images, ENCODER_PADDING_PX, self.padding)
        for layer in self:
            features = layer(features)
        return features


class Decoder(nn.Sequential):
    """Rebuilds the radiograph: 1→16 channels, then sixteen channels become a square of 4×4 pixels."""

    def __init__(self, *, padding: Padding) -> None:
        super().__init__(nn.Conv2d(1, DOWNSCALE**2, DECODER_KERNEL_PX), nn.PixelShuffle(DOWNSCALE))
        self.padding: Padding = padding

    def forward(self, latent: Tensor) -> Tensor:
        """Gives the reconstruction [B, 1, S, S], not clamped, of a latent [B, 1, S/4, S/4]."""
        features = _pad(latent, DECODER_PADDING_PX, self.padding)
        for layer in self:
            features = layer(features)
        return features


@torch.no_grad()
def initialise_interpolating(encoder: Encoder, decoder: Decoder, *, generator: torch.Generator) -> None:
    """Starts the autoencoder as a good fixed interpolation, whatever the seed.

    Each hidden kernel is the low-pass of `ENCODER_TAPS` with its taps scaled at random; the 1×1 convolution averages
    the randomness away. All taps are positive, so for an image in [0, 1] the ELU is the identity and the latent is the
    low-pass image itself, inside [0, 1]: no gradient is lost to the clamp.

    Args:
        encoder: Changed in place.
        decoder: Changed in place; it starts the same for every seed.
        generator: Source of the hidden channels' diversity, on the CPU.
    """
    taps = torch.tensor(ENCODER_TAPS, dtype=torch.float64)
    low_pass = torch.outer(taps, taps)  # [5, 5]
    mix = 0.5 + torch.rand(NUM_HIDDEN_CHANNELS, generator=generator, dtype=torch.float64)
    mix /= mix.sum()
    noise = 2 * torch.rand(NUM_HIDDEN_CHANNELS, *low_pass.shape, generator=generator, dtype=torch.float64) - 1
    noise -= torch.einsum("c,cyx->yx", mix, noise)
    noise *= DIVERSITY / noise.abs().max()
    phases = torch.tensor(DECODER_TAPS, dtype=torch.float64)
    interpolation = torch.einsum("py,qx->pqyx", phases, phases)  # [4, 4, 3, 3]
    convolutions = [layer for layer in (*encoder, *decoder) if isinstance(layer, nn.Conv2d)]
    for convolution, start in zip(convolutions, (low_pass * (1 + noise), mix, interpolation), strict=True):
        convolution.weight.copy_(start.reshape(convolution.weight.shape))
        if convolution.bias is not None:
            convolution.bias.zero_()


class AliveCount(NamedTuple):
    """How much of a latent still learns; counts, so that batches and hospitals add up."""

    num_alive: Tensor  # [] latent pixels among the lit that the clamp does not hold at 0 or 1
    num_lit: Tensor  # [] latent pixels whose source window is neither all black nor all saturated


@torch.no_grad()
def count_alive(latent: Tensor, images: Tensor) -> AliveCount:
    """Counts the latent pixels that pass a gradient, among those with something to see.

    Args:
        latent: [B, 1, S/4, S/4], clamped to [0, 1].
        images: [B, 1, S, S], its source.
    """
    window = _pad(images.float(), ENCODER_PADDING_PX, "replicate")
    source = F.avg_pool2d(window, ENCODER_KERNEL_PX, stride=DOWNSCALE)
    lit = (source > 0.0) & (source < 1.0)
    alive = lit & (latent > 0.0) & (latent < 1.0)
    return AliveCount(num_alive=alive.sum(), num_lit=lit.sum())
