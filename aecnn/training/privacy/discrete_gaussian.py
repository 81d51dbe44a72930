"""An exact sampler of the discrete Gaussian: integers and fractions only, no floating-point number anywhere.

Noise that is computed in floating point has gaps by which it can be told (Mironov, CCS 2012); this has none. Canonne,
Kamath and Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, algorithms 1 to 3:
P(x) ∝ exp(−x²/2σ²) over the integers. Added to each of a row of counts with sensitivity Δ₂, it is exactly as private
in Rényi's sense as the continuous Gaussian of noise multiplier σ/Δ₂ (their theorem 14), and is charged as that.
"""

from fractions import Fraction
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from aecnn.training.privacy.entropy import Entropy

_WORD_BITS = 64
_WORDS_AT_A_TIME = 512


def discrete_gaussian(variance: Fraction, shape: tuple[int, ...], *, entropy: Entropy) -> NDArray[np.int64]:
    """Gives independent draws of the discrete Gaussian.

    Args:
        variance: σ², above 0; the distribution's own variance is barely less.
        shape: Of the result.
        entropy: The source of every bit.
    """
    exact = ExactDraws(entropy)
    count = int(np.prod(shape, dtype=np.int64))
    return np.array([exact.gaussian(variance) for _ in range(count)], dtype=np.int64).reshape(shape)


class ExactDraws:
    """Exact draws from a stream of uniform bits.

    Args:
        entropy: Where the bits come from, some hundred words at a time.
    """

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._words: list[int] = []
        self._pool = self._pool_bits = 0

    def below(self, limit: int) -> int:
        """Gives a uniform integer from 0 to limit − 1: bits are drawn until the number they spell is small enough."""
        width = (limit - 1).bit_length()
        while True:
            drawn = self._bits(width)
            if drawn < limit:
                return drawn

    def bernoulli(self, probability: Fraction) -> bool:
        """Gives True with a probability from 0 to 1."""
        return self.below(probability.denominator) < probability.numerator

    def bernoulli_exp(self, gamma: Fraction) -> bool:
        """Gives True with probability exp(−γ), γ ≥ 0 (algorithm 1)."""
        while gamma > 1:
            if not self.bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        tosses = 1
        while self.bernoulli(gamma / tosses):
            tosses += 1
        return tosses % 2 == 1

    def laplace(self, scale: int) -> int:
        """Gives a draw of the discrete Laplace, P(x) ∝ exp(−|x|/scale) (algorithm 2)."""
        while True:
            remainder = self.below(scale)
            if not self.bernoulli_exp(Fraction(remainder, scale)):
                continue
            quotient = 0
            while self.bernoulli_exp(Fraction(1)):
                quotient += 1
            size, negative = remainder + scale * quotient, bool(self.below(2))
            if size or not negative:  # zero has one sign only
                return -size if negative else size

    def gaussian(self, variance: Fraction) -> int:
        """Gives a draw of the discrete Gaussian, P(x) ∝ exp(−x²/2σ²) (algorithm 3)."""
        scale = isqrt(variance.numerator // variance.denominator) + 1
        while True:
            drawn = self.laplace(scale)
            if self.bernoulli_exp((abs(drawn) - variance / scale) ** 2 / (2 * variance)):
                return drawn

    def _bits(self, width: int) -> int:
        while self._pool_bits < width:
            if not self._words:
                self._words = self._entropy.bits(_WORDS_AT_A_TIME)[::-1].tolist()
            self._pool |= self._words.pop() << self._pool_bits
            self._pool_bits += _WORD_BITS
        drawn = self._pool & ((1 << width) - 1)
        self._pool >>= width
        self._pool_bits -= width
        return drawn
