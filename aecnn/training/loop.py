"""One hospital's local training of the joint AE-CNN: batch → forward → joint loss → step.

The optimiser is made anew for each call, so that a round depends on the arriving weights, the plan and the seed alone.
Shapes: B images in a batch, S = input side in pixels.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from aecnn.config import Plan, TrainingConfig
from aecnn.data.augmentation import augment
from aecnn.data.buffer import DeviceReader
from aecnn.data.source import LoadedImages
from aecnn.errors import ModelError
from aecnn.model.backbone import min_batch_size
from aecnn.model.joint import JointAECNN
from aecnn.training.batches import Batching, Rows
from aecnn.training.resume import LocalCheckpoint, Saver, TrainingState, identity
from aecnn.training.step import TrainingStep


@dataclass(frozen=True)
class TrainingReport:
    """What happened in one local training, as sums that add across hospitals."""

    num_steps: int
    images_seen: int
    bce_sum: float  # over the images seen
    mse_sum: float
    alive_pixels: int  # latent pixels that pass a gradient, among those with something to see (`count_alive`)
    lit_pixels: int
    seconds: float


def train_locally(
    model: JointAECNN,
    data: LoadedImages,
    rows: Rows,
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    checkpoint: LocalCheckpoint | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainingReport:
    """Trains the model in place.

    Args:
        model: Any weights; it is moved to the device and left there in training mode.
        data: Decoded images with their targets.
        rows: Which images of `data` to train on.
        plan: Input, model and training settings.
        seed: Decides batches, augmentation and dropout.
        device: Where to compute.
        checkpoint: Where the state is kept from time to time. A training that was cut short goes on from there, to
            the bits it would have had; the file is left for the caller to remove.
        on_step: Called after each step with steps done and steps in all.

    Raises:
        ModelError: Too few images for the model's normalisation, a loss that is not finite, or too little memory.
    """
    begin, batching = time.perf_counter(), batching_of(plan)
    num_steps, batches = batching.num_steps(rows.size), batching.batches(rows, np.random.default_rng(seed))
    state = _initial_state(model, plan, seed=seed, device=device)
    saver = Saver(checkpoint, identity(data, rows, plan, seed=seed, device=device))
    step = TrainingStep(model, state.optimizer, plan.training, min_batch_size=batching.min_batch_size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from the global generator, restored afterwards
        saver.restore(state)
        begin -= state.seconds
        for images, wanted in _inputs(data, islice(batches, state.steps_done, None), plan, state):
            state.sums += step.take(images, wanted)
            state.images_seen += len(images)
            state.steps_done += 1
            saver.save_if_due(state, seconds=time.perf_counter() - begin)
            if on_step is not None:
                on_step(state.steps_done, num_steps)
    return _report(state, plan.training, seconds=time.perf_counter() - begin)


def _initial_state(model: JointAECNN, plan: Plan, *, seed: int, device: torch.device) -> TrainingState:
    model.to(device).to(memory_format=memory_format(plan.training)).train()
    return TrainingState(
        model=model,
        optimizer=build_optimizer(model, plan.training),
        augmentation=torch.Generator().manual_seed(seed),
        device=device,
        sums=torch.zeros(4, dtype=torch.float64, device=device),  # bce, mse, alive, lit: read once, at the end
    )


def batching_of(plan: Plan) -> Batching:
    """Gives how a plan goes through a hospital's images."""
    training = plan.training
    return Batching(
        batch_size=training.batch_size,
        min_batch_size=min_batch_size(plan.model.normalisation),
        epochs=training.local_epochs,
        steps=training.local_steps,
    )


def _inputs(
    data: LoadedImages, batches: Iterable[Rows], plan: Plan, state: TrainingState
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields augmented images [B, 1, S, S] and their targets [B, 14], on the device."""
    targets = torch.from_numpy(data.manifest.targets)
    reader = DeviceReader(data.images, state.device)
    for batch in batches:
        images = augment(reader.read(batch), plan.images, state.augmentation)
        images = images.contiguous(memory_format=memory_format(plan.training))
        yield images, targets[torch.from_numpy(batch)].to(state.device, non_blocking=True)


def _report(state: TrainingState, training: TrainingConfig, *, seconds: float) -> TrainingReport:
    bce_sum, mse_sum, alive_pixels, lit_pixels = state.sums.tolist()
    if not np.isfinite(bce_sum + mse_sum):
        raise ModelError(
            f"the loss became {bce_sum + mse_sum} within {state.steps_done} steps: lower training.learning_rate "
            f"(now {training.learning_rate}), or use precision: fp32"
        )
    return TrainingReport(
        num_steps=state.steps_done,
        images_seen=state.images_seen,
        bce_sum=bce_sum,
        mse_sum=mse_sum,
        alive_pixels=int(alive_pixels),
        lit_pixels=int(lit_pixels),
        seconds=seconds,
    )


def build_optimizer(model: JointAECNN, training: TrainingConfig) -> torch.optim.Optimizer:
    """Gives the optimiser the plan names, over the parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=0.9, weight_decay=training.weight_decay)
    return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def memory_format(training: TrainingConfig) -> torch.memory_format:
    """Gives how images and weights lie in memory."""
    return torch.channels_last if training.channels_last else torch.contiguous_format
