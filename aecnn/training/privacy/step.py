"""One step of patient-level DP-SGD or DP-Adam: clip each sampled patient's gradient, add, noise, divide, step.

Abadi et al., CCS 2016, algorithm 1, with patients in place of examples. The sum is divided by the fixed q × declared
patients, never by what a batch or the dataset holds, and an empty batch takes its step of noise like any other.
How many go through at a time changes nothing but the memory (and, by hooks, the last bits of a gradient).

Shapes: P patients, B images, S pixels a side.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from aecnn.config import TrainingConfig
from aecnn.errors import ModelError
from aecnn.model.joint import JointAECNN
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.batches import Rows
from aecnn.training.privacy.entropy import Entropy, gaussian, secret_seed
from aecnn.training.privacy.gradients import Gradients, Images, hook_gradients, loop_gradients, trained
from aecnn.training.privacy.promise import Promise

log = logging.getLogger(__name__)

Read = Callable[[Rows], tuple[Tensor, Tensor]]  # rows → images [B, 1, S, S] and targets [B, 14] on the device

# What rounding may add to one patient's influence on a step's sum, in units of the clip, stays below 1e-4:
# - The norm. A sum of 1024 squares in single precision, added in whatever order, is off by 1024·2⁻²⁴ = 6.1e-5 at most
#   (relative; Higham 2002, section 4.2), its root by half of that and 2⁻²⁴ more: together 3.1e-5. From there on it is
#   double precision. Squares that underflow are below 1.2e-38 each: a norm of 25 million values misses 1e-15, and no
#   clip is below 1e-4. Those that overflow make the norm infinite, and the patient adds nothing.
# - The sum. A patient more changes how each later addition is rounded: by 2⁻⁵³ of the sum, which is at most n clips,
#   on either side. For n patients in a step that is 2·n²·2⁻⁵³: 2.2e-6 for 100,000 of them, 6e-5 for half a million.
#   In single precision it would be 2·n²·2⁻²⁴, above a thousandth for a hundred patients.
_BELOW = 1.0 - 1e-4  # of the clip
_BLOCK = 1024  # values whose squares are added in single precision, which is several times as fast


class PrivateStep:
    """The private steps of one training.

    Args:
        model: In training mode, on its device.
        optimizer: Over all its parameters that train.
        training: Loss, precision, most images in memory at a time by hooks, a patient's together.
        promise: Clip, noise, sample rate and the hospital's public number of patients.
        entropy: The source of the noise, and of a seed a pass for what the network draws.
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
        self._uses_hooks = uses_hooks(promise.config, self._parameters[0].device)
        self._room = [torch.zeros_like(parameter, requires_grad=False) for parameter in self._parameters]
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
            ModelError: The GPU's memory is too small for one image, or for the step.
        """
        total = zero_sums(self._parameters)
        if self._uses_hooks:
            self._add_together(total, sampled, read)
        else:
            for own in sampled:
                self._add_alone(total, own, read)
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
            noised = (summed + self._noise_std * noise) / self._denominator
            parameter.grad = torch.empty_like(parameter).copy_(noised).detach()

    def _add_alone(self, total: Sequence[Tensor], rows: Rows, read: Read) -> None:
        """Adds one patient's clipped gradient, an image at a time: whoever is drawn needs the same memory."""
        images = (self._read(rows[place : place + 1], read) for place in range(rows.size))
        try:
            found = loop_gradients(self._model, images, self._training, count=rows.size, room=self._room)
            add_clipped(total, found, max_grad_norm=self._clip)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"the GPU's memory is too small for one image: {_REMEDY}") from error

    def _add_together(self, total: list[Tensor], sampled: Sequence[Rows], read: Read) -> None:
        """Adds clipped gradients of several patients at a time, of fewer where the memory is too small for so many."""
        waiting = list(sampled)
        while waiting:
            part = _first_part(waiting, self._batch_size)
            clipped = self._clipped(part, read)
            if clipped is None and len(part) > 1:
                self._batch_size = max(1, self._batch_size // 2)
                log.warning("The GPU's memory is too small: it goes on with %d images at a time", self._batch_size)
                continue
            if clipped is None:
                self._add_alone(total, part[0], read)
            else:
                torch._foreach_add_(total, clipped)
            del waiting[: len(part)]

    def _clipped(self, part: Sequence[Rows], read: Read) -> list[Tensor] | None:
        """Gives the sum of some patients' clipped gradients, None where the memory is too small for so many."""
        try:
            clipped = zero_sums(self._parameters)  # its own: a part that fails half way must not count twice
            batch = Images(*self._read(np.concatenate(part), read), [own.size for own in part])
            add_clipped(clipped, hook_gradients(self._model, batch, self._training), max_grad_norm=self._clip)
        except torch.OutOfMemoryError:
            pass  # its traceback holds the memory of the failed pass, which is given back outside of this block
        else:
            return clipped
        torch.cuda.empty_cache()
        return None

    def _read(self, rows: Rows, read: Read) -> tuple[Tensor, Tensor]:
        """Reads images for one pass, with a fresh seed for what the network draws in it.

        Dropout draws from a generator of PyTorch's. Went it on from pass to pass, one patient more would shift what all
        others get, which no clip bounds.
        """
        torch.manual_seed(secret_seed(self._entropy))
        return read(rows)


_REMEDY = "end other programs on it, use a larger GPU or device: cpu, or ask the centre for smaller images or model"


def zero_sums(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gives sums of nothing yet, one a parameter, in double precision."""
    return [torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False) for parameter in parameters]


def add_clipped(total: Sequence[Tensor], gradients: Gradients, *, max_grad_norm: float) -> None:
    """Adds patients' gradients [P, …] to a sum, each scaled down to the clip over all parameters together.

    A patient's gradient that is not finite adds nothing, for no clip bounds it.

    Args:
        total: In double precision (`zero_sums`).
        gradients: Of some patients.
        max_grad_norm: The clip.
    """
    norms = torch.stack([_norms(gradient) for gradient in gradients]).norm(dim=0)  # [P]
    factors = (_BELOW * max_grad_norm / norms).clamp(max=1.0).tolist()
    for patient, is_finite in enumerate(norms.isfinite().tolist()):
        if is_finite:
            for summed, gradient in zip(total, gradients, strict=True):
                summed.add_(gradient[patient], alpha=factors[patient])


def _norms(gradient: Tensor) -> Tensor:
    """Gives each patient's norm, float64 [P]; `_BELOW` says how exactly."""
    flat = gradient.reshape(len(gradient), -1)
    whole = flat.shape[1] - flat.shape[1] % _BLOCK
    blocks = flat[:, :whole].reshape(len(flat), -1, _BLOCK)
    accuracy = torch.promote_types(flat.dtype, torch.float32)
    norms = [
        torch.linalg.vector_norm(blocks, dim=2, dtype=accuracy),
        torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True, dtype=accuracy),
    ]
    found: Tensor = torch.cat(norms, dim=1).double().norm(dim=1)
    return found


def uses_hooks(privacy: PrivacyConfig, device: torch.device) -> bool:
    """Whether gradients come from hooks: by default on a GPU, which one patient at a time would leave idle.

    On a CPU neither way leads everywhere (ResNet-18: the loop is 1.3 times as fast; DenseNet-121: hooks are 1.3 times),
    and the loop takes less than half the memory (`benchmarks/results/privacy_cost.md`).
    """
    return device.type == "cuda" if privacy.gradients == "auto" else privacy.gradients == "hooks"


def _first_part(waiting: Sequence[Rows], most: int) -> list[Rows]:
    """The first patients with at most so many images; one at least, and all their images."""
    sizes = np.cumsum([own.size for own in waiting])
    return list(waiting[: max(1, int(np.searchsorted(sizes, most, side="right")))])
