"""FedAvg: the mean of the hospitals' weights, weighted by their training images (McMahan et al., AISTATS 2017).

A running sum in float64, over files that are read one tensor at a time: three models in memory (the sum counts
double), however many hospitals answered. Floating tensors keep their dtype. Integer buffers (BatchNorm's counters)
stay integers: the weighted mean, rounded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn.model.weights import Weights
from server.spool import SpooledWeights


@dataclass(frozen=True)
class Update:
    """One hospital's trained weights, and how many images it trained them on (≥ 1)."""

    hospital: str
    weights: SpooledWeights
    num_images: int


def federated_average(updates: Sequence[Update], *, wanted: Callable[[str], bool] = lambda name: True) -> Weights:
    """Gives Σ nₖ wₖ / Σ nₖ.

    Args:
        updates: In the order to sum them, all with the same tensors.
        wanted: Tells of a tensor's name whether it is averaged; by default all are.

    Raises:
        ValueError: There is no update.
    """
    if not updates:
        raise ValueError("no update to average")
    sums: dict[str, NDArray[np.float64]] = {}
    for update in updates:
        with update.weights.opened() as tensor:
            for name in filter(wanted, update.weights.tensors):
                share = tensor(name).astype(np.float64)
                share *= update.num_images
                if name in sums:
                    sums[name] += share
                else:
                    sums[name] = share
    total = sum(update.num_images for update in updates)
    tensors = updates[0].weights.tensors
    # One tensor after another, so that the sum shrinks as the average grows.
    return {name: _as_dtype(sums.pop(name) / total, np.dtype(tensors[name].dtype)) for name in list(sums)}


def _as_dtype(mean: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    rounded = np.rint(mean) if np.issubdtype(dtype, np.integer) else mean
    return np.asarray(rounded).astype(dtype)
