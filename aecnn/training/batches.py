"""Which images form each training batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from aecnn.errors import ModelError

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Batching:
    """How one local training goes through its images: `epochs` passes, or `steps` steps however many passes they take.

    A last batch of a pass with fewer than `min_batch_size` images joins the one before it.
    """

    batch_size: int
    min_batch_size: int
    epochs: int | None
    steps: int | None

    def num_steps(self, num_rows: int) -> int:
        """Gives how many batches there will be."""
        if self.steps is not None:
            return self.steps
        full, last = divmod(num_rows, self.batch_size)
        joins = full > 0 and last < self.min_batch_size
        return (self.epochs or 0) * (full + (last > 0 and not joins))

    def batches(self, rows: Rows, random: np.random.Generator) -> Iterator[Rows]:
        """Yields the batches, each sorted for the sake of reading from disk.

        Raises:
            ModelError: There are fewer rows than the smallest batch the model can train on.
        """
        self._check(rows.size)
        passes = (self._one_pass(rows, random) for _ in (count() if self.epochs is None else range(self.epochs)))
        return islice((batch for one_pass in passes for batch in one_pass), self.num_steps(rows.size))

    def _one_pass(self, rows: Rows, random: np.random.Generator) -> list[Rows]:
        shuffled = random.permutation(rows)
        batches = [shuffled[start : start + self.batch_size] for start in range(0, rows.size, self.batch_size)]
        if len(batches) > 1 and batches[-1].size < self.min_batch_size:
            last = batches.pop()
            batches[-1] = np.concatenate([batches[-1], last])
        return [np.sort(batch) for batch in batches]

    def _check(self, num_rows: int) -> None:
        remedy = "set model.normalisation to group, which trains on single images"
        if num_rows < max(1, self.min_batch_size):
            raise ModelError(
                f"{num_rows} training image(s), and this model's normalisation needs at least "
                f"{self.min_batch_size} in a batch: add images, or {remedy}"
            )
        if self.batch_size < self.min_batch_size:
            raise ModelError(
                f"training.batch_size is {self.batch_size}, and this model's normalisation needs at least "
                f"{self.min_batch_size}: raise it, or {remedy}"
            )
