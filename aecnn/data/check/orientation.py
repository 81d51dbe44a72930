"""Which way round a radiograph lies and whether its grey scale is inverted, as a small CNN reads them.

The eight orientations of a square picture are numbered 0 to 7 and lie on the axis O: orientation ``k`` is the upright
picture turned by ``k`` × 90° anticlockwise, and ``4 + k`` is the mirrored picture turned so. Thus 0 is upright, 4 is
mirrored left-right, 6 is flipped top to bottom, and 5 and 7 are flipped over a diagonal.

Every picture is read in all eight orientations, and the answers are brought back to the picture as it lies and
averaged: what is said of a turned picture is what is said of the upright one, turned (group averaging; Cohen and
Welling, Group Equivariant Convolutional Networks, ICML 2016, build it into the net instead).

Shapes: B images, N = `SIDE_PX`, the side the net sees; O = 8.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from aecnn.errors import CheckpointError

SIDE_PX = 64
NUM_ORIENTATIONS = 8
WEIGHTS_PATH = Path(__file__).with_name("orientation.safetensors")

# How often we expect each orientation before looking. One image in a hundred turned, mostly without a flip; one in a
# hundred mirrored; one in a hundred inverted. Sureness is stated under these shares.
EXPECTED_ORIENTATIONS = (0.98, 0.0025, 0.0025, 0.0025, 0.01, 0.0009, 0.0007, 0.0009)  # [O], sums to 1
EXPECTED_INVERTED = 0.01

_WIDTHS = (16, 32, 64)
_NUM_THIN = 16
_NUM_HIDDEN = 48
_STEADYING = 0.02  # added to the standard deviation, so that the noise of an almost blank picture is not blown up


@dataclass(frozen=True)
class Calibration:
    """How raw outputs become probabilities, and from which probability on an image is a suspect.

    Args:
        orientation_temperature: Divides the averaged log-probabilities of the orientations.
        inverted_temperature: Divides the averaged logit of the inversion.
        inverted_threshold: Least sureness of an inverted image.
        turned_threshold: Least sureness of a turned image.
        mirrored_threshold: Least sureness of a mirrored image.
        not_frontal_threshold: Least doubt (see `Reading.doubt`) of an image that is perhaps not frontal.
    """

    orientation_temperature: float
    inverted_temperature: float
    inverted_threshold: float
    turned_threshold: float
    mirrored_threshold: float
    not_frontal_threshold: float


@dataclass(frozen=True)
class Reading:
    """What the net says of B images.

    Args:
        orientations: [B, O] probabilities under `EXPECTED_ORIENTATIONS`.
        inverted: [B] probability under `EXPECTED_INVERTED`.
        doubt: [B] what is left of one when the likeliest of the four turns has its share, all four counted as equally
            frequent and mirror images as one. Near 0: it is clear where up is; 0.75: nothing is.
    """

    orientations: npt.NDArray[np.float64]  # [B, O]
    inverted: npt.NDArray[np.float64]  # [B]
    doubt: npt.NDArray[np.float64]  # [B]


class OrientationNet(nn.Module):
    """Gives the logits of the eight orientations and, last, of the inversion.

    About 120,000 weights. The layout of the 8 × 8 map is kept up to the last but one layer, since orientation is a
    matter of where things lie.

    Args:
        dropout: Share of values dropped before the two dense layers in training.
    """

    def __init__(self, *, dropout: float = 0.2) -> None:
        super().__init__()
        few, more, many = _WIDTHS
        self.features = nn.Sequential(
            *_convolution(1, few, kernel=3, stride=2),
            *_convolution(few, more, kernel=3, stride=2),
            *_convolution(more, more, kernel=3, stride=1),
            *_convolution(more, many, kernel=3, stride=2),
            *_convolution(many, many, kernel=3, stride=1),
            *_convolution(many, _NUM_THIN, kernel=1, stride=1),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(_NUM_THIN * (SIDE_PX // 8) ** 2, _NUM_HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_NUM_HIDDEN, NUM_ORIENTATIONS + 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Gives [B, O + 1] logits of standardised images [B, 1, N, N]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def turn(images: Tensor, orientation: int) -> Tensor:
    """Gives upright images [..., N, N] in one of the eight orientations."""
    mirrored = images.flip(-1) if orientation >= 4 else images
    return torch.rot90(mirrored, orientation % 4, (-2, -1))


def compose(outer: int, inner: int) -> int:
    """Gives the orientation of a picture turned by `inner` first and by `outer` after that."""
    sign = -1 if outer >= 4 else 1
    return (outer % 4 + sign * (inner % 4)) % 4 + 4 * ((outer // 4 + inner // 4) % 2)


def scale_down(thumbnails: npt.NDArray[np.uint8]) -> Tensor:
    """Gives [B, 1, N, N] grey values in [0, 1], each the mean of an area, of [B, S, S] with N dividing S."""
    images = torch.from_numpy(np.ascontiguousarray(thumbnails)).unsqueeze(1).float().div_(255.0)  # [B, 1, S, S]
    return F.avg_pool2d(images, images.shape[-1] // SIDE_PX)  # [B, 1, N, N]


def standardise(images: Tensor) -> Tensor:
    """Gives images [B, 1, N, N] with mean 0 and standard deviation about 1, each by itself."""
    spread, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
    return (images - mean) / (spread + _STEADYING)


@torch.inference_mode()
def raw_outputs(net: OrientationNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Gives what the net says of images, averaged over the eight ways to lay them.

    Args:
        net: In evaluation mode.
        images: [B, 1, N, N] grey values in [0, 1].

    Returns:
        [B, O] mean log-probabilities of the orientations, and [B] mean logits of the inversion.
    """
    inputs = standardise(images)
    log_orientations = inputs.new_zeros(len(inputs), NUM_ORIENTATIONS)  # [B, O]
    logit_inverted = inputs.new_zeros(len(inputs))  # [B]
    for way in range(NUM_ORIENTATIONS):
        logits = net(turn(inputs, way))  # [B, O + 1]
        back = [compose(way, orientation) for orientation in range(NUM_ORIENTATIONS)]
        log_orientations += logits[:, :NUM_ORIENTATIONS].log_softmax(dim=1)[:, back]
        logit_inverted += logits[:, NUM_ORIENTATIONS]
    return log_orientations / NUM_ORIENTATIONS, logit_inverted / NUM_ORIENTATIONS


def calibrated(log_orientations: Tensor, logit_inverted: Tensor, calibration: Calibration) -> Reading:
    """Gives probabilities from the [B, O] and [B] of `raw_outputs`."""
    scaled = log_orientations.double() / calibration.orientation_temperature  # [B, O]
    expected = torch.tensor(EXPECTED_ORIENTATIONS, dtype=torch.float64)
    orientations = (scaled + expected.log()).softmax(dim=1)  # [B, O]
    turns = scaled.softmax(dim=1).reshape(-1, 2, 4).sum(dim=1)  # [B, 4]
    odds = math.log(EXPECTED_INVERTED / (1.0 - EXPECTED_INVERTED))
    inverted = (logit_inverted.double() / calibration.inverted_temperature + odds).sigmoid()  # [B]
    doubt = 1.0 - turns.amax(dim=1)  # [B]
    return Reading(orientations=orientations.numpy(), inverted=inverted.numpy(), doubt=doubt.numpy())


def load_orientation_net(path: Path = WEIGHTS_PATH) -> tuple[OrientationNet, Calibration]:
    """Gives the trained net in evaluation mode, and its calibration, from the weights file.

    Raises:
        CheckpointError: The file is missing, damaged, or of another net.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes: dict[str, str] = file.metadata() or {}
        calibration = Calibration(**{name: float(notes[name]) for name in Calibration.__dataclass_fields__})
        net = OrientationNet()
        net.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise CheckpointError(path, ["is missing: install the package again, its wheel contains the file"]) from error
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        problem = f"is not the weights file of this version ({error}): install the package again"
        raise CheckpointError(path, [problem]) from error
    return net.eval(), calibration
