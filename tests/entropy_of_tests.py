"""Entropy with a seed, so that a test can repeat what production must never repeat."""

import numpy as np


class SeededEntropy:
    """The same words for the same seed; only for tests."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def bits(self, count: int) -> np.ndarray:
        """Gives uniform 64-bit words, [count]."""
        return self._random.integers(0, 2**64, size=count, dtype=np.uint64)
