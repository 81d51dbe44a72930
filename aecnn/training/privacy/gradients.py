"""Each patient's own gradient of the joint loss, in one of two ways that agree to rounding.

``loop`` makes one backward pass a patient: the reference, with the memory of one patient's images. ``hooks`` has Opacus
compute the gradients of several images at once. Both terms of the loss are in the one gradient, so that they are
clipped together; where several images of a patient were drawn, it is the mean of theirs.

Shapes: P patients, B images, S pixels a side. A gradient is left as Opacus's optimiser expects it: `grad_sample`
[P, …] at every parameter that trains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aecnn.config import TrainingConfig
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import joint_loss_per_image

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.__iadd__: torch.add,
    Tensor.add_: torch.add,
    Tensor.relu_: torch.relu,
    torch.relu_: torch.relu,
}


class OutOfPlace(TorchFunctionMode):
    """Computes out of place what a network computes in place, which would overwrite what Opacus's hooks read.

    Activations do so (``inplace=True``, in modules and in torchvision's own forward passes), and residual sums.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function that gives the same and leaves its input alone."""
        given = dict(kwargs or {})
        if given.get("inplace"):
            given["inplace"] = False
        return _OUT_OF_PLACE.get(func, func)(*args, **given)


@dataclass(frozen=True)
class Images:
    """Images of some patients, each patient's behind one another."""

    images: Tensor  # [B, 1, S, S]
    targets: Tensor  # [B, 14]
    counts: Sequence[int]  # images of each patient, [P]; they add up to B


class LoopGradients:
    """One backward pass a patient.

    Args:
        model: In training mode, on its device.
        training: Loss and precision.
    """

    def __init__(self, model: JointAECNN, training: TrainingConfig) -> None:
        self._model, self._training = model, training
        self._parameters = trained(model)

    def leave(self, batch: Images) -> None:
        """Leaves the patients' gradients [P, …] in `grad_sample`."""
        gradients: list[list[Tensor]] = [[] for _ in self._parameters]
        images, targets = torch.split(batch.images, list(batch.counts)), torch.split(batch.targets, list(batch.counts))
        for own, wanted in zip(images, targets, strict=True):
            total = _losses(self._model, own, wanted, self._training).sum() / len(own)
            found = torch.autograd.grad(total, self._parameters, allow_unused=True)
            for kept, parameter, gradient in zip(gradients, self._parameters, found, strict=True):
                kept.append(torch.zeros_like(parameter) if gradient is None else gradient)
        _leave(self._parameters, [torch.stack(kept) for kept in gradients])


class HookGradients:
    """Opacus's per-sample gradients; use it inside `hooked`.

    Args:
        model: The hooked model.
        training: Loss and precision.
    """

    def __init__(self, model: GradSampleModule, training: TrainingConfig) -> None:
        self._model, self._training = model, training
        self._parameters = trained(model)

    def leave(self, batch: Images) -> None:
        """Leaves the patients' gradients [P, …] in `grad_sample`."""
        for parameter in self._parameters:
            _put(parameter, None)
        with OutOfPlace():
            losses = _losses(self._model, batch.images, batch.targets, self._training)
        torch.autograd.backward(losses.sum())
        _leave(self._parameters, [self._by_patient(parameter, batch.counts) for parameter in self._parameters])

    def _by_patient(self, parameter: nn.Parameter, counts: Sequence[int]) -> Tensor:
        found: Tensor | None = getattr(parameter, "grad_sample", None)
        if found is None:  # a part of the model that this loss does not reach
            return torch.zeros((len(counts), *parameter.shape), device=parameter.device)
        if max(counts) == 1:
            return found
        return torch.stack([own.mean(dim=0) for own in torch.split(found, list(counts))])


@contextmanager
def hooked(model: JointAECNN) -> Iterator[GradSampleModule]:
    """Hooks a model up for per-sample gradients, and leaves it as it was."""
    # Each image's loss is its own, not a share of the batch's mean.
    sampled = GradSampleModule(model, loss_reduction="sum")
    try:
        yield sampled
    finally:
        sampled.to_standard_module()
        for parameter in model.parameters():
            parameter.grad = None
            for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)


def leave_nothing(parameters: Sequence[nn.Parameter]) -> None:
    """Leaves the gradients of no patient, [0, …]: what an empty Poisson batch has."""
    for parameter in parameters:
        _put(parameter, torch.zeros((0, *parameter.shape), device=parameter.device, dtype=parameter.dtype))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Gives the parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _losses(model: nn.Module, images: Tensor, targets: Tensor, training: TrainingConfig) -> Tensor:
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"):
        output = model(images)
    return joint_loss_per_image(output, images, targets, bce_weight=training.bce_weight).total


def _leave(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Leaves gradients; a patient's that is not finite becomes zero, for no clip bounds it."""
    finite = torch.stack([gradient.reshape(len(gradient), -1).isfinite().all(dim=1) for gradient in gradients])
    good = finite.all(dim=0)  # [P]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if not bool(good.all()):
            gradient = torch.where(good.reshape(-1, *([1] * (gradient.dim() - 1))), gradient, 0.0)
        _put(parameter, gradient)


def _put(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    parameter.grad_sample = gradient  # type: ignore[attr-defined]  # where Opacus looks for it
