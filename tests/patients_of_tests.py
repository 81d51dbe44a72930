"""Scores of made-up patients, several images each, whose images look alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn.findings import NUM_FINDINGS


@dataclass(frozen=True)
class Scores:
    """Logits [N, F], targets [N, F] and patients [N]."""

    logits: NDArray[np.float64]
    targets: NDArray[np.float64]
    patients: list[str]


def scores_of_patients(
    seed: int,
    *,
    num_patients: int = 80,
    most_images: int = 6,
    prevalence: float = 0.25,
    shift: float = 1.2,
    of_patient: float = 0.8,
    decimals: int | None = None,
) -> Scores:
    """Draws normal scores, higher by `shift` where a finding is there.

    Args:
        seed: Of the draw.
        num_patients: How many.
        most_images: A patient has one to so many.
        prevalence: A patient's chance of a finding, which is then in about half of the images.
        shift: In standard deviations of an image's own part.
        of_patient: Standard deviation of what all images of a patient share.
        decimals: Round to so many, for ties.
    """
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(num_patients), random.integers(1, most_images + 1, size=num_patients))
    random.shuffle(owner)
    shape = (owner.size, NUM_FINDINGS)
    ill = random.random((num_patients, NUM_FINDINGS)) < prevalence
    targets = (ill[owner] & (random.random(shape) < 0.6)).astype(np.float64)
    shared = of_patient * random.normal(size=(num_patients, NUM_FINDINGS))
    logits = random.normal(size=shape) + shared[owner] + shift * targets - 2.0
    return Scores(logits if decimals is None else logits.round(decimals), targets, [f"p{o:05d}" for o in owner])
