"""Which patients a hospital keeps for validation: decided by the patient's id alone, so it never moves."""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def in_validation(patients: Sequence[str], *, fraction: float, key: str) -> npt.NDArray[np.bool_]:
    """Says for each image whether its patient belongs to the validation part.

    HMAC-SHA256 of the patient id under `key`, read as a number in [0, 1), decides: below `fraction` is validation. The
    answer depends on nothing else, so all images of a patient stay together, and the parts are the same in every round,
    after a restart, with more patients, and in any order. A larger fraction keeps the patients of a smaller one.
    This rule may never change: a patient who moved from validation to training would make later figures worthless.

    Args:
        patients: [N] patient ids, one an image, as `Manifest.table` has them.
        fraction: Expected share of patients in validation, from 0 to 1.
        key: Names the division; another key divides independently.

    Returns:
        [N] mask, True in validation.
    """
    ids, codes = np.unique(np.asarray(patients, dtype=object), return_inverse=True)
    below = np.fromiter((_uniform(str(patient), key=key) < fraction for patient in ids), dtype=bool, count=len(ids))
    return np.asarray(below[codes], dtype=np.bool_)


def _uniform(patient: str, *, key: str) -> float:
    """A number in [0, 1) with 53 bits, the same for ever for one patient and key."""
    digest = hmac.digest(key.encode(), patient.encode(), hashlib.sha256)
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
