"""A local training that outlives a crash: its whole state in one file, from which it goes on to the same bits.

The file is safetensors (no pickle) and holds the model, the optimiser's state, every random state and the sums so far;
its header says which training it is of. A file of another training, or a broken one, is removed unused.
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aecnn.config import Plan
from aecnn.data.source import LoadedImages
from aecnn.model.joint import JointAECNN
from aecnn.training.batches import Rows

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
_SAVING_SHARE = 0.05  # at most this share of the time goes into saving
_HEADER_KEY = "training"


@dataclass(frozen=True)
class LocalCheckpoint:
    """Where the state of a training that is under way is kept.

    It is saved by the clock and not by the pass: a pass may take seconds or hours, and a crash should cost a minute.
    """

    path: Path
    key: str  # names the request that is answered
    interval_s: float = INTERVAL_S  # 0: after every step


@dataclass
class TrainingState:
    """All that one local training changes; batches follow from the seed and the number of steps done."""

    model: JointAECNN
    optimizer: torch.optim.Optimizer
    augmentation: torch.Generator
    device: torch.device
    sums: Tensor  # [4]
    steps_done: int = 0
    images_seen: int = 0
    seconds: float = 0.0


class Saver:
    """Saves a training's state now and then, and restores it at its begin; without a checkpoint it does neither.

    Args:
        checkpoint: Where to.
        training: Names the training: `identity`.
    """

    def __init__(self, checkpoint: LocalCheckpoint | None, training: str) -> None:
        self._checkpoint, self._training = checkpoint, training
        self._saved_at = time.monotonic()
        self._wait_s = 0.0 if checkpoint is None else checkpoint.interval_s

    def restore(self, state: TrainingState) -> None:
        """Puts a kept state in place of the given one, where it is of the same training."""
        if self._checkpoint is None or not self._checkpoint.path.exists():
            return
        path = self._checkpoint.path
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["of"] != [self._checkpoint.key, self._training]:
                log.info("%s is of another training and is removed", path)
                path.unlink()
                return
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read (%s) and is removed: training begins anew", path, error)
            path.unlink()
            return
        _put(tensors, state)
        state.steps_done, state.images_seen = header["steps_done"], header["images_seen"]
        state.seconds = header["seconds"]
        log.info("Training goes on after step %d", state.steps_done)

    def save_if_due(self, state: TrainingState, *, seconds: float) -> None:
        """Saves the state if the last time is long enough ago; `seconds` is the training's own so far."""
        begin = time.monotonic()
        if self._checkpoint is None or begin - self._saved_at < self._wait_s:
            return
        header = {
            "of": [self._checkpoint.key, self._training],
            "steps_done": state.steps_done,
            "images_seen": state.images_seen,
            "seconds": seconds,
        }
        try:
            _write(self._checkpoint.path, _tensors_of(state), json.dumps(header))
        except (OSError, SafetensorError) as error:  # such as a full disk: the training itself needs none
            log.warning("The training's state cannot be kept (%s): a crash would cost the round's work", error)
        self._saved_at = time.monotonic()
        if self._checkpoint.interval_s > 0.0:
            self._wait_s = max(self._checkpoint.interval_s, (self._saved_at - begin) / _SAVING_SHARE)


def identity(data: LoadedImages, rows: Rows, plan: Plan, *, seed: int, device: torch.device) -> str:
    """Gives the digest of all that a training depends on besides the weights it begins with."""
    images = "\n".join(data.manifest.table["image"].iloc[rows].astype(str))
    parts = (images, plan.model_dump_json(), str(seed), device.type)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _tensors_of(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items() if value is not None}
    tensors |= {
        "random/augmentation": state.augmentation.get_state(),
        "random/cpu": torch.get_rng_state(),
        "sums": state.sums,
    }
    if state.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(state.device)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _put(tensors: dict[str, Tensor], state: TrainingState) -> None:
    model = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    state.model.load_state_dict(model)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            values.setdefault(int(index), {})[key] = _lying_like(parameters[int(index)], tensor)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": values, "param_groups": groups})
    state.augmentation.set_state(tensors["random/augmentation"])
    torch.set_rng_state(tensors["random/cpu"])
    if state.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], state.device)
    state.sums.copy_(tensors["sums"])


def _lying_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Lays a value out in memory as its parameter is; sums over other layouts may differ in the last bit."""
    return value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value).detach()


def _write(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={_HEADER_KEY: header})
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
