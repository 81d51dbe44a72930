"""Weights and histograms as Flower's records, and back."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from aecnn.contract import PACKED
from aecnn.model.weights import Weights, pack_weights, unpack_weights


def to_array_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives Flower's record of named arrays; dtypes and order are kept."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def packed_record(weights: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives weights as the one array of a record."""
    return to_array_record({PACKED: pack_weights(weights)})


def weights_in(record: ArrayRecord) -> Weights:
    """Gives the weights packed in a record; reading never unpickles.

    Raises:
        CheckpointError: The record holds no packed weights.
    """
    return unpack_weights(record[PACKED].numpy(), subject="the arriving weights")
