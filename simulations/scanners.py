"""The scanners of simulated hospitals, by `by: scanner`: one as the images are, the others drawn around it.

The ranges are of our choosing: a visible change of grey curve, brightness, noise, sharpness and frame, of which none
would make a reader refuse the picture. Each property is drawn on its own. Only what hospitals train and validate on is
shifted: the test split is read as it is, through the reference's scanner.
"""

import math
from collections.abc import Sequence

import numpy as np

from aecnn.config import ScannerConfig
from aecnn.training.seeds import derive_seed

GAMMA = (0.75, 1.35)  # drawn evenly in the logarithm, as the next two: halving and doubling are equally far
CONTRAST = (0.7, 1.4)
RESOLUTION_FACTOR = (1.0, 2.0)
BRIGHTNESS = (-0.08, 0.08)
NOISE_STD = (0.0, 0.025)
BORDER_FRACTION = (0.0, 0.06)


def draw_scanners(hospitals: Sequence[str], *, seed: int) -> dict[str, ScannerConfig]:
    """Gives each hospital's scanner; the first hospital is the reference, whose images are not shifted.

    Args:
        hospitals: Their names; draws go by the place among them, so more hospitals leave those before as they are.
        seed: Of the run.
    """
    first, *others = hospitals
    return {first: ScannerConfig()} | {
        name: _draw(derive_seed(seed, "scanner", place)) for place, name in enumerate(others, 1)
    }


def _draw(seed: int) -> ScannerConfig:
    random = np.random.default_rng(seed)

    def evenly(bounds: tuple[float, float]) -> float:
        return round(random.uniform(*bounds), 3)

    def evenly_in_logarithm(bounds: tuple[float, float]) -> float:
        return round(math.exp(random.uniform(math.log(bounds[0]), math.log(bounds[1]))), 3)

    return ScannerConfig(
        gamma=evenly_in_logarithm(GAMMA),
        contrast=evenly_in_logarithm(CONTRAST),
        resolution_factor=evenly_in_logarithm(RESOLUTION_FACTOR),
        brightness=evenly(BRIGHTNESS),
        noise_std=evenly(NOISE_STD),
        border_fraction=evenly(BORDER_FRACTION),
        noise_seed=seed,
    )
