"""A model on disk: one safetensors file that holds the weights and says what they are, and a JSON for people.

The JSON beside the weights repeats what is in the file's own header, so a file that was copied without it still loads.
Pickles (`.pt`, `.pth`) are refused: opening one runs whatever code is in it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from aecnn.config import ImagesConfig, ModelConfig
from aecnn.errors import CheckpointError, ModelError
from aecnn.findings import FINDINGS
from aecnn.model.joint import JointAECNN, build_architecture
from aecnn.model.weights import Array, Weights, faults_of, load_weights, rename_old
from aecnn.strict_model import StrictModel

SUFFIX = ".safetensors"
HEADER_KEY = "aecnn"

_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar")
_ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6, and .npz
_PICKLE_MAGIC = tuple(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5))


class CheckpointMetadata(StrictModel):
    """What weights are: the model they fit, the images it expects and where they come from."""

    format_version: Literal[1] = 1
    model: ModelConfig
    images: ImagesConfig
    findings: tuple[str, ...] = FINDINGS
    round: int | None = None  # of the run; 0 is the start
    run: str | None = None
    fingerprint: str | None = None  # of the code that trained it
    figures: dict[str, float | None] = Field(default_factory=dict)  # for example validation AUROC; None where undefined


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file, known to fit the model their metadata names."""

    path: Path
    weights: Weights  # in state-dict order
    metadata: CheckpointMetadata

    def build(self) -> JointAECNN:
        """Builds the model with these weights, on the CPU and in evaluation mode."""
        model = build_architecture(self.metadata.model, input_size_px=self.metadata.images.input_size_px)
        load_weights(model, self.weights, subject=self.path)
        return model.eval()


def save_checkpoint(path: Path, weights: Weights, metadata: CheckpointMetadata) -> None:
    """Writes the weights and, beside them, the JSON; each file is there whole or not at all.

    Args:
        path: Ends in ``.safetensors``; its folder is made.
        weights: As `weights_of` gives them.
        metadata: Also stored inside the file.

    Raises:
        CheckpointError: The name has another ending.
    """
    if path.suffix != SUFFIX:
        raise CheckpointError(path, [f"ends in {path.suffix!r}: give a name that ends in {SUFFIX}"])
    document = metadata.model_dump_json(indent=2)
    header = json.dumps(metadata.model_dump(mode="json"), separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}  # save() writes raw memory
    _write_atomically(path, save(contiguous, metadata={HEADER_KEY: header}))
    _write_atomically(path.with_suffix(".json"), (document + "\n").encode())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks it whole: file, metadata, then every name, shape and dtype.

    Args:
        path: The ``.safetensors`` file. Names that older code gave are translated.

    Raises:
        CheckpointError: With every fault found.
    """
    _refuse_other_formats(path)
    header, arrays = _read(path)
    metadata = _metadata(path, header)
    if metadata.findings != FINDINGS:
        found = ", ".join(metadata.findings)
        raise CheckpointError(path, [f"its findings are {found}; expected, in this order, {', '.join(FINDINGS)}"])
    try:
        with torch.device("meta"):
            model = build_architecture(metadata.model, input_size_px=metadata.images.input_size_px)
    except ModelError as error:
        raise CheckpointError(path, [str(error)]) from error
    weights, faults = _renamed(arrays)
    _add_missing_counters(model, weights)
    misfits = faults_of(model, weights)
    if misfits:
        described = f"{metadata.model.backbone} with {metadata.model.normalisation} normalisation"
        faults.append(f"its metadata name {described}, and its weights are of another backbone or normalisation")
    faults += misfits
    faults += [f"{name!r} holds NaN or infinity" for name, array in weights.items() if _has_non_finite(array)]
    if faults:
        raise CheckpointError(path, faults)
    return Checkpoint(path, {name: weights[name] for name in model.state_dict()}, metadata)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may undo the rename
    finally:
        os.close(folder)


def _refuse_other_formats(path: Path) -> None:
    remedy = "only .safetensors files are read, since opening a pickle runs the code in it"
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise CheckpointError(path, [f"ends in {path.suffix!r}, a pickle's name: {remedy}"])
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(path, [f"cannot be read ({error.strerror}): give the path of a {SUFFIX} file"]) from error
    # A safetensors file starts with its header's length in eight bytes, then '{'.
    if start.startswith(_ZIP_MAGIC) or (start.startswith(_PICKLE_MAGIC) and start[8:] != b"{"):
        raise CheckpointError(path, [f"is a pickle or a zip archive by its first bytes, whatever its name: {remedy}"])


def _read(path: Path) -> tuple[str | None, Weights]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            return header, {name: np.array(file.get_tensor(name), copy=True) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            path, [f"is truncated or no safetensors file ({size} bytes; {error}): copy or save it again"]
        ) from error


def _metadata(path: Path, header: str | None) -> CheckpointMetadata:
    beside = path.with_suffix(".json")
    place = "its header" if header is not None else beside.name
    try:
        text = beside.read_text(encoding="utf-8") if header is None else header
        document = json.loads(text)
    except FileNotFoundError as error:
        fault = f"has no metadata in its header, and {beside.name} is missing: place the JSON written with it beside it"
        raise CheckpointError(path, [fault]) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(path, [f"{place} cannot be read as JSON: {error}"]) from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != 1:
        raise CheckpointError(path, [f"format_version in {place} is {version!r}, this code reads 1: update aecnn"])
    try:
        return CheckpointMetadata.model_validate(document)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"], fault["input"]) for fault in error.errors()]
        raise CheckpointError(path, [f"{key} in {place}: {why} (found {it!r})" for key, why, it in faults]) from error


def _has_non_finite(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all())


def _renamed(arrays: Weights) -> tuple[Weights, list[str]]:
    weights: Weights = {}
    faults = []
    for old, array in arrays.items():
        name = rename_old(old)
        if name in weights:
            faults.append(f"{old!r} is an old name of {name!r}, which the file holds too: keep one")
        weights[name] = array
    return weights, faults


def _add_missing_counters(model: JointAECNN, weights: Weights) -> None:
    """Files of the time of the old names have no batch counters at all; they start at zero."""
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    if not any(name in weights for name in counters):
        weights.update({name: np.zeros((), dtype=np.int64) for name in counters})
