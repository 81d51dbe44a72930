"""One hospital's local training of the joint AE-CNN: batch → forward → joint loss → step.

The optimiser is made anew for each call, so that a round depends on the arriving weights, the plan and the seed alone.
Shapes: B images in a batch, S = input side in pixels.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aecnn.config import Plan, TrainingConfig
from aecnn.data.augmentation import augment
from aecnn.data.buffer import DeviceReader
from aecnn.data.source import LoadedImages
from aecnn.errors import ModelError
from aecnn.model.autoencoder import count_alive
from aecnn.model.backbone import min_batch_size
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import joint_loss
from aecnn.training.batches import Batching, Rows


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
) -> TrainingReport:
    """Trains the model in place.

    Args:
        model: Any weights; it is moved to the device and left there in training mode.
        data: Decoded images with their targets.
        rows: Which images of `data` to train on.
        plan: Input, model and training settings.
        seed: Decides batches, augmentation and dropout.
        device: Where to compute.

    Raises:
        ModelError: Too few images for the model's normalisation, or a loss that is not finite.
    """
    training, begin = plan.training, time.perf_counter()
    batching = Batching(
        batch_size=training.batch_size,
        min_batch_size=min_batch_size(plan.model.normalisation),
        epochs=training.local_epochs,
        steps=training.local_steps,
    )
    batches = batching.batches(rows, np.random.default_rng(seed))
    generator = torch.Generator().manual_seed(seed)
    model.to(device).to(memory_format=memory_format(training)).train()
    optimizer = build_optimizer(model, training)
    targets = torch.from_numpy(data.manifest.targets)
    reader = DeviceReader(data.images, device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # bce, mse, alive, lit: read once, at the end
    images_seen = steps_done = 0
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)  # dropout draws from the global generator, restored afterwards
        for batch in batches:
            images = augment(reader.read(batch), plan.images, generator)
            images = images.contiguous(memory_format=memory_format(training))
            wanted = targets[torch.from_numpy(batch)].to(device, non_blocking=True)
            sums += _train_step(model, optimizer, images, wanted, training)
            images_seen += len(batch)
            steps_done += 1
    bce_sum, mse_sum, alive_pixels, lit_pixels = sums.tolist()
    if not np.isfinite(bce_sum + mse_sum):
        raise ModelError(
            f"the loss became {bce_sum + mse_sum} within {steps_done} steps: lower training.learning_rate "
            f"(now {training.learning_rate}), or use precision: fp32"
        )
    return TrainingReport(
        num_steps=steps_done,
        images_seen=images_seen,
        bce_sum=bce_sum,
        mse_sum=mse_sum,
        alive_pixels=int(alive_pixels),
        lit_pixels=int(lit_pixels),
        seconds=time.perf_counter() - begin,
    )


def _train_step(
    model: JointAECNN, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, training: TrainingConfig
) -> Tensor:
    """One step on images [B, 1, S, S] with targets [B, 14].

    Returns:
        [4] sums over the batch, on its device: BCE, MSE, alive and lit latent pixels.
    """
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"):
        output = model(images)
    loss = joint_loss(output, images, targets, bce_weight=training.bce_weight)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss.total)
    optimizer.step()
    alive, lit = count_alive(output.latent.detach(), images)
    return torch.stack([loss.bce.detach() * len(images), loss.mse.detach() * len(images), alive, lit])


def build_optimizer(model: JointAECNN, training: TrainingConfig) -> torch.optim.Optimizer:
    """Gives the optimiser the plan names, over the parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=0.9, weight_decay=training.weight_decay)
    return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def memory_format(training: TrainingConfig) -> torch.memory_format:
    """Gives how images and weights lie in memory."""
    return torch.channels_last if training.channels_last else torch.contiguous_format
