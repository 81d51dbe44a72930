"""Where the randomness of privacy comes from: the operating system, never a seed of the run.

The centre knows the run's seed. Who knows the noise can subtract it; who knows who was sampled voids amplification by
sampling (8,750 steps at q = 0.0057 and σ = 1 cost ε 3.0 sampled in secret, and 54 otherwise).

Nor is the noise drawn by PyTorch's generator on the CPU: whatever its seed, it begins in one of 2³² states, and each of
them can be tried until its noise is found in an update. It is computed here in double precision, and rounded only after
it is added, which leaves little for attacks on the last bits (Mironov, CCS 2012).
"""

import math
import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

_SCALE = 2.0**-53
_KEY_BYTES, _NONCE_BYTES = 32, 16


class Entropy(Protocol):
    """What privacy draws on. Production has one, `SystemEntropy`; tests hand in their own."""

    def bits(self, count: int) -> NDArray[np.uint64]:
        """Gives independent, uniform 64-bit words, [count]."""


class SystemEntropy:
    """The operating system's generator: each call's key is its, and ChaCha20 makes the key longer."""

    def bits(self, count: int) -> NDArray[np.uint64]:
        """Gives independent, uniform 64-bit words, [count]."""
        # The system's own generator is ChaCha20, too, at half the speed; a key is used once, so the nonce may be zero.
        cipher = Cipher(algorithms.ChaCha20(os.urandom(_KEY_BYTES), bytes(_NONCE_BYTES)), mode=None)
        return np.frombuffer(cipher.encryptor().update(bytes(8 * count)), dtype=np.uint64)


def uniform(entropy: Entropy, count: int) -> NDArray[np.float64]:
    """Gives draws from [0, 1), [count], each a multiple of 2⁻⁵³."""
    return (entropy.bits(count) >> np.uint64(11)).astype(np.float64) * _SCALE


def gaussian(entropy: Entropy, count: int, *, device: torch.device) -> Tensor:
    """Gives independent draws from the standard normal distribution, float64 [count] (Box and Muller 1958)."""
    half = (count + 1) // 2
    words = torch.from_numpy((entropy.bits(2 * half) >> np.uint64(11)).view(np.int64)).to(device)
    drawn = words.double().mul_(_SCALE)
    radius = torch.log1p(-drawn[:half]).mul_(-2.0).sqrt_()
    angle = drawn[half:] * (2.0 * math.pi)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]


def secret_seed(entropy: Entropy) -> int:
    """Gives a fresh seed for one of PyTorch's generators; the noise does not come from one."""
    return int(entropy.bits(1)[0] >> np.uint64(1))
