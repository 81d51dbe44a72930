"""What differential privacy costs: ε of everything that ran, and the noise that a plan needs.

One accountant for log, report, ledger and message. Adjacency: one patient, with all their radiographs, is added or
removed. A mechanism is the Poisson-subsampled Gaussian of DP-SGD (Abadi et al., CCS 2016), some number of times; one
Gaussian release of everybody has a sample rate of 1. Mechanisms of any settings compose exactly.

Two accountants, both Opacus's: ``prv`` (Gopi, Lee and Wutschitz, NeurIPS 2021) composes numerically, and its upper end
is given; ``rdp`` (Mironov, CSF 2017; Mironov, Talwar and Zhang 2019) is looser, above all at small ε.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aecnn.config import Accountant
from aecnn.errors import PrivacyError

LARGEST_EPSILON = 1e4  # beyond it the accountants' arithmetic ends, and a promise means nothing long before
LARGEST_NOISE = 1e4
_SMALLEST_NOISE = 0.1  # below it a single step costs more than any promise
_TOLERANCE = 1e-4  # relative, of a solved noise multiplier
_PRV_ERROR = 0.01  # of ε, absolute: what the numerical composition may be off
_LARGE_RDP_ORDERS = (128.0, 256.0, 512.0, 1024.0)  # besides Opacus's own: at small ε the best order is large


@dataclass(frozen=True, order=True)
class Mechanism:
    """A Poisson-subsampled Gaussian mechanism, some number of times."""

    noise_multiplier: float  # σ: the noise's standard deviation, in units of the sensitivity
    sample_rate: float  # q: of each patient, in each step
    steps: int


def default_delta(num_patients: int) -> float:
    """Gives the δ of a plan that names none: min(1e-5, 1/(10·patients))."""
    return min(1e-5, 1.0 / (10.0 * num_patients))


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Gives the same mechanisms with the steps of equal settings added, in one order."""
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for mechanism in mechanisms:
        steps[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.steps
    return tuple(Mechanism(sigma, rate, count) for (sigma, rate), count in sorted(steps.items()) if count)


def epsilon_of(mechanisms: Iterable[Mechanism], *, delta: float, accountant: Accountant = "prv") -> float:
    """Gives ε of all mechanisms together.

    Args:
        mechanisms: All that ran on one patient's data, in any order.
        delta: δ.
        accountant: `prv` or `rdp`.

    Returns:
        0 for no mechanism; infinity where a mechanism has no noise, or ε is beyond `LARGEST_EPSILON`.
    """
    return _epsilon_of(merged(mechanisms), delta, accountant)


@lru_cache(maxsize=4096)
def _epsilon_of(mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> float:
    if not mechanisms:
        return 0.0
    if any(mechanism.noise_multiplier < _SMALLEST_NOISE for mechanism in mechanisms):
        return math.inf
    by_rdp = _by_rdp(mechanisms, delta)
    if accountant == "rdp":
        return by_rdp if by_rdp <= LARGEST_EPSILON else math.inf
    # ε by RDP is an upper bound, and says beforehand whether the other one's arithmetic would hold.
    if by_rdp > LARGEST_EPSILON:
        return math.inf
    return min(_by_prv(mechanisms, delta, rough=by_rdp), by_rdp)


def _history(mechanisms: Sequence[Mechanism]) -> list[tuple[float, float, int]]:
    return [(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps) for mechanism in mechanisms]


def _by_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    from opacus.accountants import RDPAccountant  # Opacus takes seconds to import, and few processes need it

    account = RDPAccountant()
    account.history = _history(mechanisms)
    with _quiet():
        epsilon, _ = account.get_privacy_spent(delta=delta, alphas=[*account.DEFAULT_ALPHAS, *_LARGE_RDP_ORDERS])
    return max(0.0, float(epsilon)) if math.isfinite(epsilon) else math.inf


def _by_prv(mechanisms: Sequence[Mechanism], delta: float, *, rough: float) -> float:
    from opacus.accountants import PRVAccountant

    account = PRVAccountant()
    account.history = _history(mechanisms)
    error = max(_PRV_ERROR, _PRV_ERROR * rough / 10.0)  # of large ε a thousandth: its grid would fill the memory
    with _quiet():
        return float(account.get_epsilon(delta=delta, eps_error=error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns where its optimal order is the last one (the bound holds all the same), NumPy where q is 1."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=1024)
def noise_for(*, epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "prv") -> float:
    """Gives the least noise multiplier with which a whole plan stays within ε.

    It is solved for all steps of the plan at once: the noise for one round's share of them would cost far more.

    Args:
        epsilon: Of the whole plan.
        delta: δ.
        sample_rate: q, of each patient in each step.
        steps: All local steps of the plan.
        accountant: `prv` or `rdp`.

    Raises:
        PrivacyError: No noise gives this ε.
    """

    from scipy.optimize import brentq

    def excess(noise: float, how: Accountant) -> float:
        cost = epsilon_of([Mechanism(noise, sample_rate, steps)], delta=delta, accountant=how)
        return math.log(min(cost, 2.0 * LARGEST_EPSILON) / epsilon) if cost > 0.0 else -1.0

    high = 1.0
    while excess(high, "rdp") > 0.0:
        high *= 2.0
        if high > LARGEST_NOISE:
            raise PrivacyError(
                f"no noise gives ε {epsilon:g} at δ {delta:g} in {steps} steps with sample rate {sample_rate:g}: "
                "raise epsilon, or lower the steps or the sample rate"
            )
    low = _SMALLEST_NOISE
    for how in ("rdp", "prv") if accountant == "prv" else ("rdp",):  # the cheap bound first: it narrows the search
        if excess(low, how) <= 0.0:
            return low
        root = float(brentq(excess, low, high, args=(how,), rtol=_TOLERANCE))
        high = root * (1.0 + 2.0 * _TOLERANCE)  # on the safe side of what was found
        low = max(_SMALLEST_NOISE, 0.7 * root)  # nowhere is the numerical bound that much tighter
        if excess(low, "prv") <= 0.0:
            low = _SMALLEST_NOISE
    return high
