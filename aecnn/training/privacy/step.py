"""One step of patient-level DP-SGD or DP-Adam: clip each sampled patient's gradient, add, noise, divide, step.

Clipping, noise and the division are Opacus's optimiser's. The sum is divided by the fixed q × declared patients, never
by what a batch or the dataset holds, and an empty batch takes its step of noise like any other. Patients go through a
few images at a time, which changes nothing but the memory.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from aecnn.config import PrivacyConfig, TrainingConfig
from aecnn.errors import ModelError
from aecnn.model.joint import JointAECNN
from aecnn.training.batches import Rows
from aecnn.training.privacy.entropy import Entropy, noise_seed
from aecnn.training.privacy.gradients import HookGradients, Images, LoopGradients, hooked, leave_nothing, trained
from aecnn.training.privacy.promise import Promise

log = logging.getLogger(__name__)

Read = Callable[[Rows], tuple[Tensor, Tensor]]  # rows → images [B, 1, S, S] and targets [B, 14] on the device


class PrivateStep:
    """The private steps of one training.

    Args:
        optimizer: Over the parameters that train.
        gradients: What computes each patient's.
        promise: Clip, noise, sample rate and the hospital's public number of patients.
        batch_size: Most images in memory at a time; a patient's stay together.
        entropy: The noise's source.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: LoopGradients | HookGradients,
        promise: Promise,
        *,
        batch_size: int,
        entropy: Entropy,
    ) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._parameters, self._gradients, self._entropy = parameters, gradients, entropy
        self._noise = torch.Generator(parameters[0].device)
        self._batch_size = batch_size
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=promise.noise_multiplier,
            max_grad_norm=promise.config.max_grad_norm,
            expected_batch_size=promise.config.sample_rate * promise.declared_patients,  # type: ignore[arg-type]
            loss_reduction="mean",
            generator=self._noise,
        )

    def take(self, sampled: Sequence[Rows], read: Read) -> int:
        """One step on the images of sampled patients.

        Args:
            sampled: The drawn images of each patient; there may be none.
            read: Gives images and targets of rows.

        Returns:
            How many images were seen; it tells of the sampling, and stays at the hospital.

        Raises:
            ModelError: The GPU's memory is too small for one patient's images.
        """
        waiting = list(sampled)
        while waiting:
            part = _first_part(waiting, self._batch_size)
            if self._accumulate(part, read):
                del waiting[: len(part)]
        leave_nothing(self._parameters)
        self._noise.manual_seed(noise_seed(self._entropy))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sum(own.size for own in sampled)

    def _accumulate(self, part: Sequence[Rows], read: Read) -> bool:
        """Adds some patients' clipped gradients; False where the memory is too small for so many."""
        try:
            images, targets = read(np.concatenate(part))
            self._gradients.leave(Images(images, targets, [own.size for own in part]))
            self._optimizer.signal_skip_step(do_skip=True)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise ModelError(
                    "the GPU's memory is too small for one patient's images: end other programs on it, use a larger "
                    "GPU or device: cpu, or ask the centre for smaller images or model"
                ) from error
        else:
            return True
        self._batch_size = max(1, self._batch_size // 2)
        log.warning("The GPU's memory is too small: it goes on with %d images at a time", self._batch_size)
        torch.cuda.empty_cache()
        return False


@contextmanager
def private_step(
    model: JointAECNN, optimizer: torch.optim.Optimizer, training: TrainingConfig, promise: Promise, *, entropy: Entropy
) -> Iterator[PrivateStep]:
    """Gives what takes the private steps of a model, which is left without hooks.

    Args:
        model: In training mode, on its device.
        optimizer: Over its parameters.
        training: Loss, precision, images in memory at a time.
        promise: Clip, noise and denominator.
        entropy: The noise's source.
    """
    if uses_hooks(promise.config, trained(model)[0].device):
        with hooked(model) as sampled:
            gradients = HookGradients(sampled, training)
            yield PrivateStep(optimizer, gradients, promise, batch_size=training.batch_size, entropy=entropy)
    else:
        gradients_one_by_one = LoopGradients(model, training)
        yield PrivateStep(optimizer, gradients_one_by_one, promise, batch_size=training.batch_size, entropy=entropy)


def uses_hooks(privacy: PrivacyConfig, device: torch.device) -> bool:
    """Whether gradients come from hooks: by default on a GPU, which one patient at a time would leave idle."""
    return device.type == "cuda" if privacy.gradients == "auto" else privacy.gradients == "hooks"


def _first_part(waiting: Sequence[Rows], most: int) -> list[Rows]:
    """The first patients with at most so many images; one at least, and all their images."""
    sizes = np.cumsum([own.size for own in waiting])
    return list(waiting[: max(1, int(np.searchsorted(sizes, most, side="right")))])
