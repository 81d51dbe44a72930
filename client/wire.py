"""Named arrays as Flower's record, and back."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray


def to_array_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Gives Flower's record of named arrays; dtypes and order are kept."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def arrays_of(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Gives the named arrays of a record; reading never unpickles."""
    return {name: array.numpy() for name, array in record.items()}
