"""Poisson sampling of patients: the unit of privacy, who may have one radiograph or 184.

In every step each patient is taken by itself with probability q, and of a taken patient a few images are drawn
uniformly. What one patient adds to a step is then bounded by the clip whatever the number of their images, and the
accountant of the subsampled Gaussian holds with patients in place of samples (cf. Charles et al. 2024, who sample
users and average over a few of each one's examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from aecnn.training.batches import Rows
from aecnn.training.privacy.entropy import Entropy, uniform


@dataclass(frozen=True)
class PatientRows:
    """The images of each patient: rows[starts[p]:starts[p + 1]] are patient p's."""

    rows: Rows
    starts: NDArray[np.intp]  # [patients + 1]

    @classmethod
    def of(cls, patients: Sequence[str], rows: Rows) -> Self:
        """Groups some rows by patient.

        Args:
            patients: The patient of every row of the table.
            rows: Those to group.
        """
        names = np.asarray(patients, dtype=object)[rows]
        _, codes = np.unique(names.astype(str), return_inverse=True)
        counts = np.bincount(codes)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        return cls(rows[np.argsort(codes, kind="stable")], starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


def sample_patients(
    patients: PatientRows, *, sample_rate: float, images_per_patient: int, entropy: Entropy
) -> list[Rows]:
    """Draws one step's patients, each with probability `sample_rate`, and some images of each.

    Args:
        patients: Those of the training part.
        sample_rate: q.
        images_per_patient: Drawn of each without replacement; all of a patient who has fewer.
        entropy: The source of both draws.

    Returns:
        One array of rows a sampled patient; there may be none.
    """
    taken = np.flatnonzero(uniform(entropy, len(patients)) < sample_rate)
    return [_images_of(patients, int(patient), images_per_patient, entropy) for patient in taken]


def _images_of(patients: PatientRows, patient: int, most: int, entropy: Entropy) -> Rows:
    own = patients.rows[patients.starts[patient] : patients.starts[patient + 1]]
    if own.size <= most:
        return own
    if most == 1:
        return own[[int(uniform(entropy, 1)[0] * own.size)]]
    return np.sort(own[np.argsort(uniform(entropy, own.size), kind="stable")[:most]])
