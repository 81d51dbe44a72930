"""One step of patient-level DP-SGD or DP-Adam: clip each sampled patient's gradient, add, noise, divide, step.

Abadi et al., CCS 2016, algorithm 1, with patients in place of examples. The sum is divided by the fixed q × declared
patients, never by what a batch or the dataset holds, and an empty batch takes its step of noise like any other.
Patients go through a few images at a time, which changes nothing but the memory.

Shapes: P patients, B images, S pixels a side.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from aecnn.config import TrainingConfig
from aecnn.errors import ModelError
from aecnn.model.joint import JointAECNN
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.batches import Rows
from aecnn.training.privacy.entropy import Entropy, gaussian
from aecnn.training.privacy.gradients import Gradients, Images, hook_gradients, loop_gradients, trained
from aecnn.training.privacy.promise import Promise

log = logging.getLogger(__name__)

Read = Callable[[Rows], tuple[Tensor, Tensor]]  # rows → images [B, 1, S, S] and targets [B, 14] on the device
GradientsOf = Callable[[JointAECNN, Images, TrainingConfig], Iterator[Gradients]]

_BELOW = 1.0 - 1e-6  # of the clip: rounding a factor to single precision must not lift a norm above it
_BLOCK = 4096  # values whose squares are added in single precision


class PrivateStep:
    """The private steps of one training.

    Args:
        model: In training mode, on its device.
        optimizer: Over all its parameters that train.
        training: Loss, precision, most images in memory at a time; a patient's stay together.
        promise: Clip, noise, sample rate and the hospital's public number of patients.
        entropy: The noise's source.
    """

    def __init__(
        self,
        model: JointAECNN,
        optimizer: torch.optim.Optimizer,
        training: TrainingConfig,
        promise: Promise,
        *,
        entropy: Entropy,
    ) -> None:
        self._model, self._optimizer, self._training, self._entropy = model, optimizer, training, entropy
        self._parameters, self._batch_size = trained(model), training.batch_size
        hooks = uses_hooks(promise.config, self._parameters[0].device)
        self._gradients_of: GradientsOf = hook_gradients if hooks else loop_gradients
        self._clip = promise.config.max_grad_norm
        self._noise_std = promise.noise_multiplier * self._clip
        self._denominator = promise.config.sample_rate * promise.declared_patients

    def take(self, sampled: Sequence[Rows], read: Read) -> int:
        """One step on the images of sampled patients.

        Args:
            sampled: The drawn images of each patient; there may be none.
            read: Gives images and targets of rows.

        Returns:
            How many images were seen; it tells of the sampling, and stays at the hospital.

        Raises:
            ModelError: The GPU's memory is too small for one patient's images, or for the step.
        """
        total, waiting = self._zeros(), list(sampled)
        while waiting:
            part = _first_part(waiting, self._batch_size)
            clipped = self._clipped(part, read)
            if clipped is not None:
                torch._foreach_add_(total, clipped)
                del waiting[: len(part)]
        self._release(total)
        try:
            self._optimizer.step()
        except torch.OutOfMemoryError as error:  # some parameters may have moved: this step cannot be repeated
            raise ModelError(f"the GPU's memory is too small for the optimiser's state: {_REMEDY}") from error
        self._optimizer.zero_grad(set_to_none=True)
        return sum(own.size for own in sampled)

    def _release(self, total: Sequence[Tensor]) -> None:
        """Leaves (sum + noise) / (q × declared patients) as the gradient that the optimiser steps along."""
        for parameter, summed in zip(self._parameters, total, strict=True):
            noise = gaussian(self._entropy, parameter.numel(), device=parameter.device).reshape(parameter.shape)
            noised = (summed.double() + self._noise_std * noise) / self._denominator
            parameter.grad = torch.empty_like(parameter).copy_(noised).detach()

    def _clipped(self, part: Sequence[Rows], read: Read) -> list[Tensor] | None:
        """Gives the sum of some patients' clipped gradients, None where the memory is too small for so many."""
        clipped = self._zeros()  # a sum of its own: a part that runs out of memory half way must not count twice
        try:
            images, targets = read(np.concatenate(part))
            for gradients in self._gradients_of(
                self._model, Images(images, targets, [own.size for own in part]), self._training
            ):
                add_clipped(clipped, gradients, max_grad_norm=self._clip)
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise ModelError(f"the GPU's memory is too small for one patient's images: {_REMEDY}") from error
        else:
            return clipped
        self._batch_size = max(1, self._batch_size // 2)
        log.warning("The GPU's memory is too small: it goes on with %d images at a time", self._batch_size)
        torch.cuda.empty_cache()
        return None

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(parameter, requires_grad=False) for parameter in self._parameters]


_REMEDY = "end other programs on it, use a larger GPU or device: cpu, or ask the centre for smaller images or model"


def add_clipped(total: Sequence[Tensor], gradients: Gradients, *, max_grad_norm: float) -> None:
    """Adds patients' gradients [P, …] to a sum, each scaled down to the clip over all parameters together.

    A patient's gradient that is not finite adds nothing, for no clip bounds it.
    """
    norms = torch.stack([_norms(gradient) for gradient in gradients]).norm(dim=0)  # [P]
    finite = norms.isfinite()
    factors = torch.where(finite, (_BELOW * max_grad_norm / norms).clamp(max=1.0), 0.0)
    all_finite = bool(finite.all())
    for summed, gradient in zip(total, gradients, strict=True):
        own = gradient if all_finite else torch.where(finite.reshape(-1, *[1] * summed.dim()), gradient, 0.0)
        if len(own) == 1:  # the same without a copy
            summed.add_(own[0], alpha=float(factors))
        else:
            summed.add_(torch.tensordot(factors.to(summed.dtype), own.to(summed.dtype), dims=1))


def _norms(gradient: Tensor) -> Tensor:
    """Gives each patient's norm, float64 [P]: in single precision, millions of values sum up to a thousandth short."""
    flat = gradient.reshape(len(gradient), -1)
    whole = flat.shape[1] - flat.shape[1] % _BLOCK
    blocks = flat[:, :whole].reshape(len(flat), -1, _BLOCK)  # short sums are exact enough, and seven times as fast
    accuracy = torch.promote_types(flat.dtype, torch.float32)
    norms = [
        torch.linalg.vector_norm(blocks, dim=2, dtype=accuracy),
        torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True, dtype=accuracy),
    ]
    found: Tensor = torch.cat(norms, dim=1).double().norm(dim=1)
    return found


def uses_hooks(privacy: PrivacyConfig, device: torch.device) -> bool:
    """Whether gradients come from hooks: by default on a GPU, which one patient at a time would leave idle.

    On a CPU neither way leads everywhere (ResNet-18: the loop is 1.5 times as fast; DenseNet-121: hooks are 1.3 times),
    and the loop takes half the memory (`benchmarks/results/privacy_cost.md`).
    """
    return device.type == "cuda" if privacy.gradients == "auto" else privacy.gradients == "hooks"


def _first_part(waiting: Sequence[Rows], most: int) -> list[Rows]:
    """The first patients with at most so many images; one at least, and all their images."""
    sizes = np.cumsum([own.size for own in waiting])
    return list(waiting[: max(1, int(np.searchsorted(sizes, most, side="right")))])
