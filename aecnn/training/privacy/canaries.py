"""Canary patients, whose membership an audit tries to guess: pictures of noise with findings drawn at random.

No other patient teaches a model what a canary would, so its gradients are nearly at right angles to all others, and
larger than the clip. A patient's images are near copies of one another, the worst case of a patient with many.

Shapes: M canaries, K images of each, S pixels a side.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from aecnn.data.manifest import Manifest
from aecnn.data.source import LoadedImages, MemoryImages
from aecnn.findings import NUM_FINDINGS
from aecnn.training.batches import Rows

_BLOCKS = 16  # a side of the picture: fine enough to differ, coarse enough to outlast the encoder
_COPY_NOISE = 1  # grey values by which a canary's images differ


@dataclass(frozen=True)
class Canaries:
    """Ordinary patients and, behind them, canaries."""

    data: LoadedImages
    ordinary: Rows
    rows: NDArray[np.intp]  # [M, K] of each canary

    def __len__(self) -> int:
        return len(self.rows)

    def training_rows(self, included: NDArray[np.bool_]) -> Rows:
        """Gives the rows of all ordinary patients and of the included [M] canaries."""
        return np.concatenate([self.ordinary, self.rows[included].reshape(-1)])

    @property
    def num_ordinary_patients(self) -> int:
        """Patients that always take part."""
        return int(self.data.manifest.table["patient"].iloc[self.ordinary].nunique())

    def by_image(self) -> Self:
        """Gives the same images, each as a patient of its own: what image-level privacy takes them for."""
        table = self.data.manifest.table.assign(patient=self.data.manifest.table["image"])
        return replace(self, data=replace(self.data, manifest=replace(self.data.manifest, table=table)))


def with_canaries(
    data: LoadedImages, rows: Rows, *, num_canaries: int, images_per_canary: int, random: np.random.Generator
) -> Canaries:
    """Adds canaries to some images of a dataset, in memory.

    Args:
        data: Images of ordinary patients.
        rows: Which of them take part; at least one.
        num_canaries: M.
        images_per_canary: K.
        random: Draws pictures and findings.
    """
    drawn = _pictures(num_canaries, images_per_canary, data.images.size_px, random)
    pixels = np.concatenate([data.images.read(rows.astype(np.int64)).numpy()[:, 0], drawn])
    findings = random.integers(0, 2, size=(num_canaries, NUM_FINDINGS)).astype(np.float32)
    targets = np.concatenate([data.manifest.targets[rows], findings.repeat(images_per_canary, axis=0)])
    table = data.manifest.table.iloc[np.concatenate([rows, rows[:1].repeat(len(drawn))])].reset_index(drop=True)
    names = [f"canary-{m:05d}" for m in range(num_canaries) for _ in range(images_per_canary)]
    images = [f"{name}-{number % images_per_canary}" for number, name in enumerate(names)]
    table["patient"] = [*table["patient"].iloc[: rows.size], *names]
    table["image"] = [*table["image"].iloc[: rows.size], *images]
    return Canaries(
        data=LoadedImages(Manifest(data.manifest.root, table, targets), MemoryImages(pixels)),
        ordinary=np.arange(rows.size, dtype=np.intp),
        rows=np.arange(rows.size, len(table), dtype=np.intp).reshape(num_canaries, images_per_canary),
    )


def _pictures(num_canaries: int, copies: int, size_px: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws [M·K, S, S] pictures of black and white blocks, those of one canary almost alike."""
    blocks = random.integers(0, 2, size=(num_canaries, _BLOCKS, _BLOCKS))
    place = np.arange(size_px) * _BLOCKS // size_px
    pictures = (blocks[:, place][:, :, place] * 255).repeat(copies, axis=0)
    noise = random.integers(-_COPY_NOISE, _COPY_NOISE + 1, size=pictures.shape)
    grey: NDArray[np.uint8] = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    return grey
