"""What a model is made of: its layers, parameters, multiply-accumulates, and how much of it travels in a round.

Everything is worked out on PyTorch's meta device from shapes alone, so it takes no memory and no pretrained weights.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aecnn.config import ModelConfig
from aecnn.model.joint import JointAECNN, build_architecture

PARTS = ("encoder", "decoder", "classifier")


@dataclass(frozen=True)
class Layer:
    """One row of the table: a layer, or a stage of the classifier with all that is in it."""

    name: str
    kind: str
    output_shape: tuple[int, ...] | None  # of one image, without the batch; None where evaluation does not run it
    num_parameters: int
    macs: int


@dataclass(frozen=True)
class Description:
    """A model in figures; counts by part have the keys encoder, decoder, classifier and total."""

    backbone: str
    normalisation: str
    input_size_px: int
    latent_shape: tuple[int, ...]  # (1, S/4, S/4)
    num_parameters: dict[str, int]
    macs: dict[str, int]  # multiply-accumulates of convolutions and linear layers, one image in evaluation
    megabytes: float  # 10⁶ bytes of all weights, buffers included: what one model weighs on the wire
    layers: tuple[Layer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data, ready for JSON."""
        return dataclasses.asdict(self)


def describe_model(config: ModelConfig, *, input_size_px: int) -> Description:
    """Describes a model without making it.

    Args:
        config: The model.
        input_size_px: Side S of the images it sees; it decides the shapes and the multiply-accumulates.

    Raises:
        ModelError: The backbone cannot take such images.
    """
    with torch.device("meta"):
        model = build_architecture(config, input_size_px=input_size_px).eval()
        image = torch.empty(1, 1, input_size_px, input_size_px)
    macs, shapes = _trace(model, image)
    layers = tuple(
        Layer(name, type(module).__name__, shapes.get(module), _num_parameters(module), _sum_within(module, macs))
        for name, module in _rows(model)
    )
    parts = {part: model.get_submodule(part) for part in PARTS}
    state = model.state_dict().values()
    return Description(
        backbone=config.backbone,
        normalisation=config.normalisation,
        input_size_px=input_size_px,
        latent_shape=shapes[model.encoder],
        num_parameters=_with_total({name: _num_parameters(part) for name, part in parts.items()}),
        macs=_with_total({name: _sum_within(part, macs) for name, part in parts.items()}),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
        layers=layers,
    )


def _trace(model: JointAECNN, image: Tensor) -> tuple[dict[nn.Module, int], dict[nn.Module, tuple[int, ...]]]:
    """Runs one image through and notes each module's multiply-accumulates and output shape."""
    macs: dict[nn.Module, int] = {}
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        shapes[module] = tuple(output.shape[1:])
        if isinstance(module, nn.Conv2d | nn.Linear):
            macs[module] = output.numel() * module.weight[0].numel()  # each output value sums over one filter

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return macs, shapes


def _rows(model: JointAECNN) -> Iterator[tuple[str, nn.Module]]:
    """Gives the layers of the autoencoder and the stages of the classifier, in the order they run."""
    for part in PARTS:
        for name, module in model.get_submodule(part).named_children():
            if name == "features":  # DenseNet keeps its stages one floor below
                yield from ((f"{part}.features.{stage}", inner) for stage, inner in module.named_children())
            else:
                yield f"{part}.{name}", module


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sum_within(module: nn.Module, amounts: dict[nn.Module, int]) -> int:
    return sum(amounts.get(inner, 0) for inner in module.modules())


def _with_total(parts: dict[str, int]) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}
