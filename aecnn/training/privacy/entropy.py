"""Where the randomness of privacy comes from: the operating system, never a seed of the run.

The centre knows the run's seed. Who knows the noise can subtract it; who knows who was sampled voids amplification by
sampling (8,750 steps at q = 0.0057 and σ = 1 cost ε 3.0 sampled in secret, and 54 otherwise).
"""

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_SCALE = 2.0**-53


class Entropy(Protocol):
    """What privacy draws on. Production has one, `SystemEntropy`; tests hand in their own."""

    def bits(self, count: int) -> NDArray[np.uint64]:
        """Gives independent, uniform 64-bit words, [count]."""


class SystemEntropy:
    """The operating system's generator, which is cryptographic."""

    def bits(self, count: int) -> NDArray[np.uint64]:
        """Gives independent, uniform 64-bit words, [count]."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def uniform(entropy: Entropy, count: int) -> NDArray[np.float64]:
    """Gives draws from [0, 1), [count], each a multiple of 2⁻⁵³."""
    return (entropy.bits(count) >> np.uint64(11)).astype(np.float64) * _SCALE


def noise_seed(entropy: Entropy) -> int:
    """Gives a fresh seed for PyTorch's generator, which the noise of one step is drawn from."""
    return int(entropy.bits(1)[0] >> np.uint64(1))
