"""What differential privacy costs: ε of everything that ran, and the noise that a plan needs.

One accountant for log, report, ledger and message. Adjacency: one patient, with all their radiographs, is added or
removed. A mechanism is the Poisson-subsampled Gaussian of DP-SGD (Abadi et al., CCS 2016), some number of times; one
Gaussian release of everybody has a sample rate of 1. Mechanisms of any settings compose exactly.

Two accountants, both Opacus's: ``prv`` (Gopi, Lee and Wutschitz, NeurIPS 2021) composes numerically, and its upper end
is given; ``rdp`` (Mironov, CSF 2017; Mironov, Talwar and Zhang 2019) is looser, above all at small ε, and stands in
where the other one's arithmetic does not hold: at a tiny δ, which is drowned by the rounding of its Fourier transforms.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aecnn.errors import PrivacyError
from aecnn.privacy_config import Accountant

LARGEST_EPSILON = 1e4  # beyond it the accountants' arithmetic ends, and a promise means nothing long before
LARGEST_NOISE = 1e4
_SMALLEST_NOISE = 0.1  # below it a single step costs more than any promise
_TOLERANCE = 1e-4  # relative, of a solved noise multiplier
_MOST_TRIES = 40  # of that search, which takes three or four
_PRV_ERROR = 0.01  # of ε, absolute: what the numerical composition may be off; of large ε a thousandth
_LARGEST_PRV_ERROR = 1.0  # beyond it the method's own bounds do not hold
_LARGEST_PRV_GRID = 2**22  # points: half a gigabyte
_SMALLEST_PRV_DELTA = 1e-10  # at 1e-12 and 100,000 steps it gave 36.3 where the truth is 37.0
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
    if by_rdp > LARGEST_EPSILON:
        return math.inf
    # ε by RDP is an upper bound, and says beforehand whether the other one's arithmetic would hold.
    return by_rdp if accountant == "rdp" else min(_by_prv(mechanisms, delta, rough=by_rdp), by_rdp)


def _history(mechanisms: Sequence[Mechanism]) -> list[tuple[float, float, int]]:
    return [(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps) for mechanism in mechanisms]


def _by_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent  # seconds to import, and few processes need it

    costs = [m.steps * np.asarray(_rdp_of_step(m.noise_multiplier, m.sample_rate)) for m in mechanisms]
    with _quiet():
        epsilon, _ = get_privacy_spent(orders=list(_orders()), rdp=np.sum(costs, axis=0).tolist(), delta=delta)
    return max(0.0, float(epsilon)) if math.isfinite(epsilon) else math.inf


@lru_cache(maxsize=1024)
def _rdp_of_step(noise_multiplier: float, sample_rate: float) -> tuple[float, ...]:
    """Gives Rényi's ε of one step at each order: most of the work, and the same for every round of a plan."""
    from opacus.accountants.analysis.rdp import compute_rdp

    with _quiet():
        costs = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(_orders()))
    return tuple(np.asarray(costs).tolist())


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    from opacus.accountants import RDPAccountant

    return (*RDPAccountant.DEFAULT_ALPHAS, *_LARGE_RDP_ORDERS)


def _by_prv(mechanisms: Sequence[Mechanism], delta: float, *, rough: float) -> float:
    from opacus.accountants import PRVAccountant

    error = _prv_error(sum(mechanism.steps for mechanism in mechanisms), delta, rough)
    if delta < _SMALLEST_PRV_DELTA or error > _LARGEST_PRV_ERROR:
        return rough
    account = PRVAccountant()
    account.history = _history(mechanisms)
    try:
        with _quiet():
            return max(0.0, float(account.get_epsilon(delta=delta, eps_error=error)))
    except (RuntimeError, ValueError):  # it says so where its grid does not serve; the looser bound always holds
        return rough


def _prv_error(steps: int, delta: float, rough: float) -> float:
    """What the numerical composition may be off: little, but no less than a grid that fits the memory gives."""
    points_per_inverse_error = 2.0 * (rough + 3.0) * math.sqrt(steps * math.log(12_000.0 / delta) / 2.0)
    return max(_PRV_ERROR, _PRV_ERROR * rough / 10.0, points_per_inverse_error / _LARGEST_PRV_GRID)


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
    if epsilon <= 0.0:
        raise PrivacyError(f"ε is {epsilon:g}, and no noise gives that: it must be above 0")

    def excess(log_noise: float, how: Accountant) -> float:
        cost = epsilon_of(
            [Mechanism(max(_SMALLEST_NOISE, math.exp(log_noise)), sample_rate, steps)], delta=delta, accountant=how
        )
        return math.log(min(cost, 2.0 * LARGEST_EPSILON) / epsilon) if cost > 0.0 else -1.0

    safe = _noise_by_rdp(lambda log_noise: excess(log_noise, "rdp"))
    if safe is None:
        raise PrivacyError(
            f"no noise gives ε {epsilon:g} at δ {delta:g} in {steps} steps with sample rate {sample_rate:g}: "
            "raise epsilon, or lower the steps or the sample rate"
        )
    if accountant == "prv":  # the cheap bound first: it is where the search starts
        safe = _lowered(safe, lambda log_noise: excess(log_noise, "prv"))
    return max(_SMALLEST_NOISE, math.exp(safe))


def _noise_by_rdp(excess: Callable[[float], float]) -> float | None:
    """Gives log σ just above the root of a falling function, at least that of the smallest noise; None: too far up."""
    from scipy.optimize import brentq

    low, high, least, step = 0.0, 0.0, math.log(_SMALLEST_NOISE), math.log(2.0)
    while excess(high) > 0.0:
        low, high = high, high + step
        if high > math.log(LARGEST_NOISE):
            return None
    while low == high or excess(low) <= 0.0:
        if low <= least:
            return least
        low, high = max(least, low - step), low
    return float(brentq(excess, low, high, xtol=_TOLERANCE / 2.0)) + _TOLERANCE  # on the safe side of what was found


def _lowered(safe: float, excess: Callable[[float], float]) -> float:
    """Lowers log σ from a safe start to where a falling function is barely below zero: by secants, which log ε is."""
    unsafe, least = -math.inf, math.log(_SMALLEST_NOISE)
    before, value_before = safe, excess(safe)
    here = max(least, safe + value_before / 2.0)  # ε falls about as σ⁻²
    for tried in range(_MOST_TRIES):
        if safe - unsafe <= _TOLERANCE or -_TOLERANCE <= value_before <= 0.0 or safe <= least:
            break
        value = excess(here)
        safe, unsafe = (min(safe, here), unsafe) if value <= 0.0 else (safe, max(unsafe, here))
        slope = (value - value_before) / (here - before) if here != before else 0.0
        before, value_before = here, value
        aim = here - (value + _TOLERANCE / 2.0) / slope if slope < 0.0 else math.nan
        middle = (max(unsafe, least) + safe) / 2.0
        here = max(aim, least) if unsafe < aim < safe and tried < _MOST_TRIES // 4 else middle
    return safe
