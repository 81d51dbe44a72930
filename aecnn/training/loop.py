"""One hospital's local training of the joint AE-CNN: batch → forward → joint loss → step.

The optimiser is made anew for each call, so that a round depends on the arriving weights, the plan and the seed alone.
Shapes: B images in a batch, S = input side in pixels.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from aecnn.config import Plan, TrainingConfig
from aecnn.data.augmentation import augment
from aecnn.data.buffer import DeviceReader
from aecnn.data.source import LoadedImages
from aecnn.errors import AecnnError, ModelError, PrivacyError
from aecnn.model.backbone import min_batch_size
from aecnn.model.joint import JointAECNN
from aecnn.training.batches import Batching, Rows
from aecnn.training.privacy.augmentation import augment_in_secret
from aecnn.training.privacy.entropy import Entropy, SystemEntropy
from aecnn.training.privacy.promise import Promise
from aecnn.training.privacy.sampling import PatientRows, sample_patients
from aecnn.training.resume import LocalCheckpoint, Saver, TrainingState, identity
from aecnn.training.step import TrainingStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingReport:
    """What happened in one local training, as sums that add across hospitals.

    Under differential privacy there are no sums of losses and pixels: they would tell of single patients.
    """

    num_steps: int
    images_seen: int
    seconds: float
    bce_sum: float | None = None  # over the images seen
    mse_sum: float | None = None
    alive_pixels: int | None = None  # latent pixels that pass a gradient, of those that see something (`count_alive`)
    lit_pixels: int | None = None


def train_locally(
    model: JointAECNN,
    data: LoadedImages,
    rows: Rows,
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    promise: Promise | None = None,
    entropy: Entropy | None = None,
    checkpoint: LocalCheckpoint | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainingReport:
    """Trains the model in place.

    Args:
        model: Any weights; it is moved to the device and left there in training mode.
        data: Decoded images with their targets.
        rows: Which images of `data` to train on.
        plan: Input, model and training settings.
        seed: Decides batches, augmentation and dropout; under differential privacy nothing, for the centre knows it.
        device: Where to compute.
        promise: What the plan's privacy means here (`promise_of`); a plan with privacy is not trained without.
        entropy: Under differential privacy who is sampled, augmentation, dropout and the noise come from it; None: the
            operating system. Tests hand in their own.
        checkpoint: Where the state is kept from time to time. A training that was cut short goes on from there, without
            differential privacy to the bits it would have had; the file is left for the caller to remove.
        on_step: Called after each step with steps done and steps in all.

    Raises:
        ModelError: Too few images for the model's normalisation, a loss that is not finite, or too little memory.
        PrivacyError: The plan has privacy, and there is no promise; or a private step failed, whatever the reason.
    """
    if (plan.training.privacy is None) != (promise is None):
        raise PrivacyError("the plan trains with differential privacy exactly where there is a promise of it")
    begin = time.perf_counter()
    state = _initial_state(model, plan, seed=seed, device=device)
    saver = Saver(checkpoint, identity(data, rows, plan, seed=seed, device=device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from the global generator, restored afterwards
        saver.restore(state)
        begin -= state.seconds
        if promise is None:
            steps = _steps(data, rows, plan, state, seed=seed)
            num_steps = batching_of(plan).num_steps(rows.size)
        else:
            steps = _private_steps(data, rows, plan, state, promise, entropy or SystemEntropy())
            num_steps = promise.steps_per_round
        for _ in steps:
            state.steps_done += 1
            saver.save_if_due(state, seconds=time.perf_counter() - begin)
            if on_step is not None:
                on_step(state.steps_done, num_steps)
    return _report(state, plan.training, seconds=time.perf_counter() - begin)


def _steps(data: LoadedImages, rows: Rows, plan: Plan, state: TrainingState, *, seed: int) -> Iterator[None]:
    """Takes the steps from where the state stands, and yields after each."""
    batching = batching_of(plan)
    read = _reader(data, plan, state.device, lambda images: augment(images, plan.images, state.augmentation))
    step = TrainingStep(state.model, state.optimizer, plan.training, min_batch_size=batching.min_batch_size)
    for batch in islice(batching.batches(rows, np.random.default_rng(seed)), state.steps_done, None):
        state.sums += step.take(*read(batch))
        state.images_seen += batch.size
        yield


def _private_steps(
    data: LoadedImages, rows: Rows, plan: Plan, state: TrainingState, promise: Promise, entropy: Entropy
) -> Iterator[None]:
    """Takes the private steps from where the state stands, and yields after each."""
    from aecnn.training.privacy.step import PrivateStep  # Opacus takes seconds to import: only where it is used

    privacy = promise.config
    read = _reader(data, plan, state.device, lambda images: augment_in_secret(images, plan.images, entropy))
    patients = PatientRows.of(data.manifest.table["patient"].tolist(), rows)
    step = PrivateStep(state.model, state.optimizer, plan.training, promise, entropy=entropy)
    for _ in range(state.steps_done, promise.steps_per_round):
        with _one_failure():
            sampled = sample_patients(
                patients,
                sample_rate=privacy.sample_rate,
                images_per_patient=privacy.images_per_patient,
                entropy=entropy,
            )
            state.images_seen += step.take(sampled, read)
        yield


@contextmanager
def _one_failure() -> Iterator[None]:
    """Makes every failure of a private step one and the same: which one it is could tell who was drawn."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, AecnnError):
            log.exception("A private step failed")
        raise PrivacyError(f"the private training failed ({type(error).__name__}): {error}") from error


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


def _reader(
    data: LoadedImages, plan: Plan, device: torch.device, augmented: Callable[[Tensor], Tensor]
) -> Callable[[Rows], tuple[Tensor, Tensor]]:
    """Gives what reads rows as augmented images [B, 1, S, S] with their targets [B, 14], on the device."""
    targets, reader = torch.from_numpy(data.manifest.targets), DeviceReader(data.images, device)

    def read(batch: Rows) -> tuple[Tensor, Tensor]:
        images = augmented(reader.read(batch)).contiguous(memory_format=memory_format(plan.training))
        return images, targets[torch.from_numpy(batch)].to(device, non_blocking=True)

    return read


def _report(state: TrainingState, training: TrainingConfig, *, seconds: float) -> TrainingReport:
    if training.privacy is not None:
        return TrainingReport(state.steps_done, state.images_seen, seconds)
    bce_sum, mse_sum, alive_pixels, lit_pixels = state.sums.tolist()
    if not np.isfinite(bce_sum + mse_sum):
        raise ModelError(
            f"the loss became {bce_sum + mse_sum} within {state.steps_done} steps: lower training.learning_rate "
            f"(now {training.learning_rate}), or use precision: fp32"
        )
    return TrainingReport(
        num_steps=state.steps_done,
        images_seen=state.images_seen,
        seconds=seconds,
        bce_sum=bce_sum,
        mse_sum=mse_sum,
        alive_pixels=int(alive_pixels),
        lit_pixels=int(lit_pixels),
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
