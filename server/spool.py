"""Weights on disk while a run goes on: each reply as it comes, and the global model of the round.

A reply's bytes are a safetensors file and are stored as they came. Only its header is read then; tensors are read when
they are needed, one at a time, so that the centre's memory does not grow with the number of hospitals.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from aecnn.errors import AecnnError
from aecnn.model.weights import Array

GLOBAL_MODEL = "global"
SUFFIX = ".safetensors"
HEADER_SLACK_BYTES = 64 * 1024  # of a header, between two writers of the same tensors
_DTYPES = {  # safetensors' names of NumPy's dtypes; it knows others, and none of our models has them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SpoolError(AecnnError):
    """Bytes that are no safetensors file, or one of another size than the model's."""


@dataclass(frozen=True)
class Tensor:
    """What a file's header says of one tensor."""

    dtype: str  # NumPy's name
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SpooledWeights:
    """Named arrays in a file, read one by one."""

    path: Path
    tensors: Mapping[str, Tensor]  # in the file's order
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> "SpooledWeights":
        """Reads a file's header.

        Raises:
            SpoolError: It is no safetensors file.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
                tensors = {
                    name: Tensor(_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise SpoolError(f"its weights are no safetensors file ({error})") from error
        return cls(path, tensors, path.stat().st_size)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Array]]:
        """Gives a function that reads one tensor by its name."""
        with safe_open(self.path, framework="numpy") as file:
            yield file.get_tensor


class Spool:
    """The folder of one run's weights under way; whatever is in it can be asked for again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model_bytes: int | None = None

    def put(self, name: str, content: bytes | memoryview, *, round_number: int) -> SpooledWeights:
        """Stores one reply's weights, whole or not at all.

        Args:
            name: The hospital.
            content: A safetensors file.
            round_number: The round they answer.

        Raises:
            SpoolError: They are no safetensors file, or not of the global model's size; nothing is stored then.
        """
        if self._model_bytes is not None and abs(len(content) - self._model_bytes) > HEADER_SLACK_BYTES:
            raise SpoolError(f"its weights are {len(content)} bytes, and the global model's {self._model_bytes}")
        path = self._round_folder(round_number) / f"{name}{SUFFIX}"
        _write(path, content)
        try:
            return SpooledWeights.of(path)
        except SpoolError:
            path.unlink()
            raise

    def put_model(self, content: bytes | memoryview) -> SpooledWeights:
        """Stores the global model in the place of the last one."""
        path = self._folder / f"{GLOBAL_MODEL}{SUFFIX}"
        _write(path, content)
        self._model_bytes = len(content)
        return SpooledWeights.of(path)

    def forget_round(self, round_number: int) -> None:
        """Removes the replies of a round."""
        shutil.rmtree(self._round_folder(round_number), ignore_errors=True)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _round_folder(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number}"


def _write(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)
