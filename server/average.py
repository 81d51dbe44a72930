"""FedAvg: the mean of the hospitals' weights, weighted by their training images (McMahan et al., AISTATS 2017).

A running mean over one float64 copy: two models in memory, however many hospitals answer. Floating tensors keep their
dtype. Integer buffers (BatchNorm's counters) stay integers: the weighted mean, rounded.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from server.wire import Weights


def federated_average(updates: Iterable[tuple[Weights, int]]) -> dict[str, NDArray[np.generic]]:
    """Gives Σ nₖ wₖ / Σ nₖ.

    Args:
        updates: Weights and number of training images (≥ 1) of each hospital, in the order to sum them.

    Raises:
        ValueError: There is no update.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    dtypes: dict[str, np.dtype[np.generic]] = {}
    total = 0
    for weights, num_images in updates:
        total += num_images
        for name, array in weights.items():
            if name in sums:
                sums[name] += array.astype(np.float64) * num_images
            else:
                sums[name] = array.astype(np.float64) * num_images
                dtypes[name] = array.dtype
    if total == 0:
        raise ValueError("no update to average")
    return {name: _as_dtype(sums[name] / total, dtypes[name]) for name in sums}


def _as_dtype(mean: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    rounded = np.rint(mean) if np.issubdtype(dtype, np.integer) else mean
    return np.asarray(rounded).astype(dtype)
