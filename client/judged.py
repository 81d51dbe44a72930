"""What a hospital keeps at home of how it judged a run's models: in which bin each validation image's scores lie.

Sums by patient (`aecnn.evaluation.placements`) are then of the very scores whose histogram was told, without computing
them anew, and of no model that this hospital did not judge in that run.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Message
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from aecnn import contract
from aecnn.contract import CODE_AGAINST_POLICY
from aecnn.evaluation.histogram import NUM_BINS, Bins
from aecnn.findings import NUM_FINDINGS
from client.deployment import Deployment
from client.files import write_durably
from client.judging import validation_images
from client.refusal import RefusalError
from client.site import TrainingData
from client.wire import packed_bytes, request_of

RUNS_KEPT = 4
_BINS, _IMAGES = "bins", "images"


def model_in(message: Message) -> str:
    """Gives the SHA-256 of the weights in a message, whose handler has read them already."""
    return hashlib.sha256(packed_bytes(message.content.array_records[contract.WEIGHTS][contract.PACKED])).hexdigest()


def judged_bins(message: Message, data: TrainingData, deployment: Deployment) -> Bins:
    """Gives the bins kept of the model in a message, [N, F].

    Raises:
        RefusalError: This hospital did not judge that model in this run, or on other images.
    """
    request = request_of(message)
    found = JudgedModels(deployment.paths.judged).find(request.run_id, model_in(message), validation_images(data))
    if found is None:
        reason = "sums by patient are asked for, of a model that was not judged here in this run, on these images"
        raise RefusalError(CODE_AGAINST_POLICY, reason)
    return found


class JudgedModels:
    """The bins kept of judged models, a file for each.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, run_id: str, model: str, images: Sequence[str], bins: Bins) -> None:
        """Keeps one model's bins, of [N] images [N, F]; those of the runs before the last few are removed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = save({_BINS: bins.astype(np.int16)}, metadata={_IMAGES: _digest(images)})
        write_durably(self._place(run_id, model), [content])
        newest = {path.name.split("-", 1)[0]: path.stat().st_mtime_ns for path in sorted(self._files(), key=_age)}
        kept = sorted(newest, key=lambda name: newest[name])[-RUNS_KEPT:]
        for path in self._files():
            if path.name.split("-", 1)[0] not in {*kept, run_id}:
                path.unlink(missing_ok=True)

    def find(self, run_id: str, model: str, images: Sequence[str]) -> Bins | None:
        """Gives the bins of a model that was judged in a run on these very images; None where it was not."""
        try:
            with safe_open(self._place(run_id, model), framework="numpy") as file:
                if file.metadata()[_IMAGES] != _digest(images):
                    return None
                bins = file.get_tensor(_BINS)
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        if bins.shape != (len(images), NUM_FINDINGS) or bins.dtype != np.int16:
            return None
        found = bins.astype(np.int64)
        return None if ((found < 0) | (found >= NUM_BINS)).any() else found

    def _place(self, run_id: str, model: str) -> Path:
        return self._folder / f"{run_id}-{model[:32]}.safetensors"

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*.safetensors"))


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _digest(images: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()
