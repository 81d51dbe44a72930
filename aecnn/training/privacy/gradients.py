"""Each patient's own gradient of the joint loss, in one of two ways that agree to rounding.

``loop`` makes one backward pass an image: the reference, with the memory of one image. ``hooks`` has Opacus compute the
gradients of several images at once. Both terms of the loss are in the one gradient, so that they are
clipped together; where several images of a patient were drawn, it is the mean of theirs.

Shapes: P patients, B images, S pixels a side. Gradients are one tensor [P, …] for each parameter that trains.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aecnn.config import TrainingConfig
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import joint_loss_per_image
from aecnn.model.normalisation import FrozenNorm2d

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


Gradients = list[Tensor]  # of every parameter that trains, [P, …]


def loop_gradients(
    model: JointAECNN,
    images: Iterable[tuple[Tensor, Tensor]],
    training: TrainingConfig,
    *,
    count: int,
    room: Sequence[Tensor],
) -> Gradients:
    """Gives one patient's gradients [1, …]: one backward pass an image, each alone, and the memory of one.

    Args:
        model: In training mode, on its device; left without gradients.
        images: The patient's, one after another: [1, 1, S, S] with targets [1, 14].
        training: Loss and precision.
        count: How many images there are.
        room: Where the gradients are added up, one tensor a parameter that trains: taken once for all patients, so that
            one with many images needs no more memory than another.
    """
    parameters = trained(model)
    try:
        for parameter, own in zip(parameters, room, strict=True):
            parameter.grad = own.zero_()
        for image, wanted in images:
            torch.autograd.backward(_losses(model, image, wanted, training).sum() / count)
    finally:
        for parameter in parameters:
            parameter.grad = None
    return [own.unsqueeze(0) for own in room]


def hook_gradients(model: JointAECNN, batch: Images, training: TrainingConfig) -> Gradients:
    """Gives all patients' gradients [P, …] at once, from Opacus's hooks; the model is left without them.

    Args:
        model: In training mode, on its device.
        batch: Images of some patients.
        training: Loss and precision.
    """
    parameters = trained(model)
    with _hooked(model) as sampled:
        # PyTorch warns of a module none of whose inputs has a gradient, such as the first one.
        images = batch.images.detach().requires_grad_()
        with OutOfPlace():
            losses = _losses(sampled, images, batch.targets, training)
        torch.autograd.backward(losses.sum())
        return [_by_patient(parameter, batch.counts) for parameter in parameters]


@register_grad_sampler(FrozenNorm2d)  # type: ignore[untyped-decorator]
def _frozen_norm(layer: FrozenNorm2d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gives each image's gradients of scale and shift, [B, C], which Opacus has for no layer with buffers."""
    features = activations[0]
    mean, variance = (values.reshape(1, -1, 1, 1) for values in (layer.running_mean, layer.running_var))
    normalised = (features - mean) * torch.rsqrt(variance + layer.eps)
    found = {layer.weight: torch.einsum("bchw,bchw->bc", backprops, normalised.to(backprops.dtype))}
    return found | {layer.bias: backprops.sum(dim=(2, 3))}


def _by_patient(parameter: nn.Parameter, counts: Sequence[int]) -> Tensor:
    found: Tensor | None = getattr(parameter, "grad_sample", None)
    if found is None:  # a part of the model that this loss does not reach
        return torch.zeros((len(counts), *parameter.shape), device=parameter.device, dtype=parameter.dtype)
    if max(counts) == 1:
        return found
    return torch.stack([own.mean(dim=0) for own in torch.split(found, list(counts))])


@contextmanager
def _hooked(model: JointAECNN) -> Iterator[GradSampleModule]:
    """Hooks a model up for per-sample gradients, and leaves it as it was, also where memory ran out half way."""
    # Each image's loss is its own, not a share of the batch's mean. Strict, Opacus refuses any layer with buffers, for
    # statistics may mix patients: those of `frozen` normalisation never move, and `batch` is refused with the plan.
    sampled = GradSampleModule(model, loss_reduction="sum", strict=False)
    try:
        yield sampled
    finally:
        sampled.to_standard_module()
        for parameter in model.parameters():
            parameter.grad = None
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        for module in model.modules():
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Gives the parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _losses(model: nn.Module, images: Tensor, targets: Tensor, training: TrainingConfig) -> Tensor:
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"):
        output = model(images)
    return joint_loss_per_image(output, images.detach(), targets, bce_weight=training.bce_weight).total
