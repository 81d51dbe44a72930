"""Seeds that depend on who trains and when, and on nothing else."""

import hashlib


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Gives a 63-bit seed from the run's seed and, for example, a hospital's name and a round.

    The same parts give the same seed on every machine and in every order of execution.
    """
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
