"""Weights as named arrays: what a model's state is outside of PyTorch, in checkpoints and in messages."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from aecnn.errors import MAX_FAULTS_SHOWN, CheckpointError
from aecnn.findings import nearest_hint

Array = NDArray[np.generic]
Weights = dict[str, Array]

# Names that earlier code gave to what is now called otherwise; each is tried on every name, in this order.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^module\."), ""),  # saved from inside DataParallel
    (re.compile(r"^classifier\.(?:densenet\d+|resnet\d+|inception_v3)\."), "classifier."),  # a wrapper's own name
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),  # old torchvision: norm.1 for norm1
    (re.compile(r"(^|\.)(classifier|fc)\.0\.(weight|bias)$"), r"\1\2.\3"),  # a head in Sequential(Linear, Sigmoid)
)


def weights_of(model: nn.Module) -> Weights:
    """Gives copies of all parameters and buffers, in state-dict order and with their own dtypes."""
    return {
        name: np.array(tensor.detach().cpu().numpy(), order="C", copy=True)
        for name, tensor in model.state_dict().items()
    }


def load_weights(model: nn.Module, weights: Mapping[str, Array], *, subject: object = "weights") -> None:
    """Copies named arrays into a model; names, shapes and dtypes must be the model's own.

    Args:
        model: Changed in place, on whatever device it is; left as it was where the weights do not fit.
        weights: One array for every parameter and buffer, in any order.
        subject: What the weights are called in an error, for example the file's path.

    Raises:
        CheckpointError: With every name that is missing, unknown, or of another shape or dtype.
    """
    faults = faults_of(model, weights)
    if faults:
        raise CheckpointError(subject, faults)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.tensor(weights[name]))


def faults_of(model: nn.Module, weights: Mapping[str, Array]) -> list[str]:
    """Gives one sentence for everything that keeps the weights from fitting the model; none where they fit.

    The model may be on the meta device.
    """
    expected = {name: (tuple(t.shape), _numpy_dtype(t.dtype)) for name, t in model.state_dict().items()}
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    faults = _name_faults(missing, unknown)
    for name, (shape, dtype) in expected.items():
        found = weights.get(name)
        if found is None:
            continue
        if found.shape != shape:
            faults.append(f"{name!r} has shape {found.shape}, the model needs {shape}")
        if found.dtype != dtype:
            faults.append(f"{name!r} is {found.dtype}, the model needs {dtype}")
    return faults


def pack_weights(weights: Mapping[str, Array]) -> NDArray[np.uint8]:
    """Gives named arrays as the bytes of a safetensors file, uint8 [size]."""
    return np.frombuffer(save({name: np.asarray(array, order="C") for name, array in weights.items()}), dtype=np.uint8)


def unpack_weights(packed: NDArray[np.generic], *, subject: object = "weights") -> Weights:
    """Gives the named arrays that `pack_weights` packed; the order of names is the file's.

    Raises:
        CheckpointError: The bytes are no safetensors file.
    """
    try:
        return dict(load(packed.tobytes()))
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(subject, [f"are no safetensors file ({error})"]) from error


def rename_old(name: str) -> str:
    """Gives the present name of a parameter or buffer that earlier code, or an old torchvision, called otherwise."""
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _name_faults(missing: Sequence[str], unknown: Sequence[str]) -> list[str]:
    # Looking for the nearest name is slow, and only the first faults are shown.
    candidates = tuple(missing)
    faults = [
        f"{name!r} is not in the model{nearest_hint(name, candidates) if index < MAX_FAULTS_SHOWN else ''}"
        for index, name in enumerate(unknown)
    ]
    return faults + [f"{name!r} is missing" for name in missing]


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[np.generic]:
    return torch.empty(0, dtype=dtype).numpy().dtype
