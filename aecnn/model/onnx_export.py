"""The model as one ONNX file, for programs without PyTorch.

The file takes ``image`` [B, 1, S, S], float32 in [0, 1], any B, and gives ``logits`` and ``probabilities`` [B, 14],
``latent`` [B, 1, S/4, S/4] and ``reconstruction`` [B, 1, S, S]. What has to happen to a radiograph before, and in which
order the findings come, is written into the file's own metadata.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aecnn.errors import ModelError
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import Checkpoint, CheckpointMetadata
from aecnn.model.joint import JointAECNN

SUFFIX = ".onnx"
INPUT = "image"
MAX_DIFFERENCE = 1e-4  # between file and model; of logits beyond ±1, relative to them
_CHECKED_BATCHES = (1, 3)  # images; the file is written from two


# From 1.29 on ONNX Runtime sends usage data and names the machine by a number of its own, unless it is told not to
# before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class Exported(NamedTuple):
    """What the file gives, in this order."""

    logits: Tensor  # [B, 14]
    probabilities: Tensor  # [B, 14]
    latent: Tensor  # [B, 1, S/4, S/4] in [0, 1]
    reconstruction: Tensor  # [B, 1, S, S] in [0, 1]


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        num_bytes: Its size.
        max_difference: The largest between what the file and what the model give, by output.
    """

    path: Path
    num_bytes: int
    max_difference: dict[str, float]


class _Exportable(nn.Module):
    """The model with the outputs of `Exported`."""

    def __init__(self, model: JointAECNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Exported:
        output = self.model(image)
        return Exported(output.logits, torch.sigmoid(output.logits), output.latent, output.reconstruction)


def export_onnx(checkpoint: Checkpoint, path: Path) -> ExportReport:
    """Writes a checkpoint's model, after ONNX Runtime has given the same outputs as PyTorch for several batches.

    Args:
        checkpoint: The model.
        path: Ends in ``.onnx``; its folder is there.

    Raises:
        ModelError: Another ending, the extra ``onnx`` is not installed, or the outputs differ by more than
            `MAX_DIFFERENCE`.
    """
    if path.suffix != SUFFIX:
        raise ModelError(f"{path}: ends in {path.suffix!r}: give a name that ends in {SUFFIX}")
    _require_extra()
    size = checkpoint.metadata.images.input_size_px
    model = _Exportable(checkpoint.build()).eval()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write(model, temporary, size_px=size, properties=properties_of(checkpoint.metadata))
        differences = _differences(model, temporary, size_px=size)
        odd = [f"{name} by {value:.2g}" for name, value in differences.items() if not value <= MAX_DIFFERENCE]
        if odd:
            raise ModelError(
                f"{checkpoint.path}: ONNX Runtime and PyTorch differ ({', '.join(odd)}; {MAX_DIFFERENCE:g} is "
                "allowed): the file is not written; try other versions of torch, onnxscript and onnxruntime"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return ExportReport(path, path.stat().st_size, differences)


def properties_of(metadata: CheckpointMetadata) -> dict[str, str]:
    """Gives what a file says of itself, by key."""
    images, model = metadata.images, metadata.model
    crop = (
        "none"
        if images.input_size_px == images.size_px
        else f"the central {images.input_size_px} x {images.input_size_px} px"
    )
    return {
        "intended_use": "Research only, not for clinical use.",
        "findings": ",".join(FINDINGS),
        "preprocessing": (
            "Decode to 8-bit grey, upright, bright is dense. Pad the shorter side with black, half on either side, to "
            f"a square. Scale it to {images.size_px} x {images.size_px} px: down by the mean of the pixels whose "
            f"centres lie in each new pixel, up bilinearly. Crop: {crop}. Divide by 255."
        ),
        "size_px": str(images.size_px),
        "input_size_px": str(images.input_size_px),
        "crop": "none" if images.input_size_px == images.size_px else "centre",
        "intensity_range": "0..1",
        "test_crops": images.test_crops,
        "backbone": model.backbone,
        "normalisation": model.normalisation,
        "fingerprint": metadata.fingerprint or "",
        "run": metadata.run or "",
        "round": "" if metadata.round is None else str(metadata.round),
    }


def _require_extra() -> None:
    """Refuses before the work: without `onnxscript`, through which it writes, torch.onnx names no extra."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"ONNX needs an extra ({error}): pip install 'aecnn-federated[onnx]'") from error


def _write(model: _Exportable, path: Path, *, size_px: int, properties: dict[str, str]) -> None:
    program = torch.onnx.export(
        model,
        (torch.rand(2, 1, size_px, size_px, generator=torch.Generator().manual_seed(0)),),
        dynamo=True,
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        input_names=[INPUT],
        output_names=list(Exported._fields),
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ModelError("torch.onnx gave no model: try another version of torch")
    program.model.metadata_props.update(properties)
    program.model.doc_string = "Joint AE-CNN on chest X-rays. Research only, not for clinical use."
    program.save(path)


def _differences(model: _Exportable, path: Path, *, size_px: int) -> dict[str, float]:
    """The largest difference of each output, over several batches of noise."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    largest = dict.fromkeys(Exported._fields, 0.0)
    for num_images in _CHECKED_BATCHES:
        images = torch.rand(num_images, 1, size_px, size_px, generator=generator)
        with torch.inference_mode():
            expected = [output.numpy() for output in model(images)]
        given = session.run(list(Exported._fields), {INPUT: images.numpy()})
        for name, one, other in zip(Exported._fields, expected, given, strict=True):
            difference = np.abs(one - other) / np.maximum(np.abs(one), 1.0)
            largest[name] = max(largest[name], float(difference.max()))
    return largest
