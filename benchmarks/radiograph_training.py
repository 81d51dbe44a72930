"""How the net of `aecnn.data.check.orientation` is trained, calibrated and given its thresholds.

Folds of the tuning patients are read by nets that never saw them; from these readings come temperatures and thresholds.
The net that ships is trained on all tuning patients. Shapes: B images, N = 64 px.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from aecnn.data.check.orientation import Calibration, OrientationNet, calibrated, raw_outputs, standardise, turn

SEED = 20180918
NUM_FOLDS = 3
STEPS = 1200
BATCH_SIZE = 128
LEARNING_RATE = 4e-3
_LOG_EVERY = 300
# Tuning images that are not as the others, seen among the first suspects: left out of training and thresholds.
SET_ASIDE = (
    "00002645_002.png",  # mirrored: the marker L is on the left of the picture, heart and aortic arch too
    "00003490_011.png",  # upside down
    "00017999_000.png",  # inverted
    "00018902_000.png",  # mirrored: as the first
    "00020440_000.png",  # mirrored: the marker R reads backwards, heart and stomach are on the left of the picture
)
# How many out-of-fold images of nih_256px may be suspects.
ALLOWED = {"inverted_threshold": 0, "turned_threshold": 0, "mirrored_threshold": 1, "not_frontal_threshold": 1}


def train(images: Tensor, patients: npt.NDArray[np.str_], *, counted: npt.NDArray[np.bool_], path: Path) -> None:
    """Trains the nets of the folds and the one that ships, and writes its weights file.

    Args:
        images: [B, 1, N, N] grey values in [0, 1] of the tuning patients.
        patients: [B] whose they are.
        counted: [B] whether an image counts for temperatures and thresholds.
        path: Where the weights go.
    """
    names, codes = np.unique(patients, return_inverse=True)
    folds = np.random.default_rng(SEED).permutation(len(names))[codes] % NUM_FOLDS  # [B]
    parts = [images[torch.from_numpy(folds != fold)] for fold in range(NUM_FOLDS)] + [images]
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        nets = list(pool.map(train_net, parts, range(SEED, SEED + len(parts))))
    readings = [
        _read_twice(nets[fold], images, torch.from_numpy((folds == fold) & counted)) for fold in range(NUM_FOLDS)
    ]
    upright, negative = (
        tuple(torch.cat(part) for part in zip(*pairs, strict=True)) for pairs in zip(*readings, strict=True)
    )
    calibration = calibrate(upright, negative)
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in nets[-1].state_dict().items()
    }
    notes = {name: f"{value:.6g}" for name, value in dataclasses.asdict(calibration).items()}
    notes["version"] = "1"
    notes["trained"] = (
        f"NIH ChestX-ray14, {len(images)} images of {len(names)} patients, {STEPS} steps of {BATCH_SIZE}, seed {SEED}; "
        f"calibrated on {int(counted.sum())} images read by {NUM_FOLDS} nets that had not seen the patient"
    )
    save_file(state, path, metadata=notes)
    print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB, {notes}")


def train_net(images: Tensor, seed: int) -> OrientationNet:
    """Trains one net on one core with AdamW and one cycle of the learning rate."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # first weights and dropout
    generator = torch.Generator().manual_seed(seed)
    net = OrientationNet()
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.15)
    order, started, total = torch.empty(0, dtype=torch.long), time.monotonic(), 0.0
    for step in range(1, STEPS + 1):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(images), generator=generator)
        inputs, orientations, inverted = augment(images[order[:BATCH_SIZE]], generator)
        order = order[BATCH_SIZE:]
        logits = net(inputs)
        loss = F.cross_entropy(logits[:, :-1], orientations)
        loss = loss + F.binary_cross_entropy_with_logits(logits[:, -1], inverted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item()
        if step % _LOG_EVERY == 0:
            mean, seconds = total / _LOG_EVERY, time.monotonic() - started
            print(f"seed {seed}, step {step}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
            total = 0.0
    return net.eval()


def augment(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gives [B, 1, N, N] net inputs, their [B] orientations and whether they are [B] inverted (0 or 1)."""

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator) * (high - low) + low

    images = _shift(images, between)
    softened = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(softened, between(0, 1, 1, 1, 1) * (between(0, 1, 1, 1, 1) < 0.4))
    low, high = between(-0.1, 0.2, 1, 1, 1), between(0.75, 1.15, 1, 1, 1)
    images = ((images - low) / (high - low)).clamp(0, 1) ** between(-0.6, 0.6, 1, 1, 1).exp()
    inverted = between(0, 1) < 0.5  # [B]
    images = torch.where(inverted[:, None, None, None], 1 - images, images)
    images = (images * between(0.5, 1, 1, 1, 1) + between(0, 0.3, 1, 1, 1)).clamp(0, 1)
    images = _frame(images, between)
    images = images + torch.randn(images.shape, generator=generator) * between(0, 0.06, 1, 1, 1)
    orientations = torch.randint(0, 8, (len(images),), generator=generator)  # [B]
    turned = torch.stack([turn(image, int(way)) for image, way in zip(images, orientations, strict=True)])
    return standardise(turned), orientations, inverted.float()


def _shift(images: Tensor, between: Callable[..., Tensor]) -> Tensor:
    """Turns by up to 8°, zooms and shifts; one image in eight becomes small on black, as a child on a large plate."""
    angle, zoom, stretch = between(-8, 8) * math.pi / 180, between(-0.18, 0.18).exp(), between(-0.06, 0.06).exp()
    small = between(0, 1) < 0.125  # [B]
    zoom = torch.where(small, between(1.1, 2.0), zoom)
    grid = torch.zeros(len(images), 2, 3)
    grid[:, 0, 0], grid[:, 0, 1] = angle.cos() * zoom * stretch, -angle.sin() * zoom
    grid[:, 1, 0], grid[:, 1, 1] = angle.sin() * zoom, angle.cos() * zoom / stretch
    grid[:, :, 2] = between(-0.12, 0.12, 2) * torch.where(small, 4.0, 1.0)[:, None]
    places = F.affine_grid(grid, list(images.shape), align_corners=False)
    framed = F.grid_sample(images, places, padding_mode="border", align_corners=False)
    on_black = F.grid_sample(images, places, padding_mode="zeros", align_corners=False)
    return torch.where(small[:, None, None, None], on_black, framed)


def _frame(images: Tensor, between: Callable[..., Tensor]) -> Tensor:
    """Puts uniform bands, often black, on none to four sides of one image in three."""
    side = images.shape[-1]
    widths = (between(0, 10, 4) * (between(0, 1, 4) < 0.5) * (between(0, 1, 1) < 0.35)).round()[:, :, None]  # [B, 4, 1]
    steps = torch.arange(side)
    rows = (steps < widths[:, 0]) | (steps >= side - widths[:, 1])  # [B, N]
    columns = (steps < widths[:, 2]) | (steps >= side - widths[:, 3])  # [B, N]
    value = between(-0.4, 1.2, 1, 1, 1).clamp(0, 1)
    return torch.where((rows[:, :, None] | columns[:, None, :])[:, None], value, images)


def _read_twice(
    net: OrientationNet, images: Tensor, rows: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return raw_outputs(net, images[rows]), raw_outputs(net, 1 - images[rows])


def calibrate(upright: tuple[Tensor, ...], negative: tuple[Tensor, ...]) -> Calibration:
    """Gives temperatures that make the right answers likeliest, and the least thresholds that let few images alarm.

    Args:
        upright: `raw_outputs` of images by nets that had not seen the patient.
        negative: The same of their negatives.
    """
    temperatures = torch.exp(torch.linspace(math.log(0.2), math.log(5.0), 161))
    orientation = [-(upright[0] / value).log_softmax(dim=1)[:, 0].mean().item() for value in temperatures]
    signs = torch.cat([-upright[1], negative[1]])
    inversion = [F.softplus(-signs / value).mean().item() for value in temperatures]
    best = temperatures[int(np.argmin(orientation))].item(), temperatures[int(np.argmin(inversion))].item()
    reading = calibrated(upright[0], upright[1], Calibration(*best, *[1.0] * 4))
    turned = 1.0 - reading.orientations[:, 0] - reading.orientations[:, 4]
    scores = {
        "inverted_threshold": (reading.inverted, 0.5),
        "turned_threshold": (turned, 0.5),
        "mirrored_threshold": (reading.orientations[:, 4], 0.5),
        "not_frontal_threshold": (reading.doubt, 0.05),
    }
    thresholds = {name: max(least, _above(score, ALLOWED[name])) for name, (score, least) in scores.items()}
    for name, (score, _) in scores.items():
        print(f"{name}: {thresholds[name]:.4f}; highest of {len(score)} images: {np.sort(score)[-8:].round(4)}")
    print(f"temperatures {best}; loss {min(orientation):.4f} (at 1: {orientation[80]:.4f}), {min(inversion):.4f}")
    return Calibration(*best, **thresholds)


def _above(scores: npt.NDArray[np.float64], allowed: int) -> float:
    """A number that all but `allowed` scores lie below: halfway to the next score, on the scale of the odds."""
    highest = np.sort(scores)[::-1].clip(1e-9, 1 - 1e-9)
    odds = np.log(highest / (1 - highest))
    wanted = float(odds[allowed] + 0.5)
    return 1.0 / (1.0 + math.exp(-wanted))
