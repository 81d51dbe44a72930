"""How many patients of each group go to each hospital: log-normal sizes, and Dirichlet draws of two kinds.

All Dirichlet draws start from one matrix of independent Gamma(α) variates, a row a group and a column a hospital.
Smaller α means a more one-sided matrix; as α grows all its entries become alike.

- Scaled so that each *row* adds up to the group's patients, each group's shares are Dirichlet(α) over the hospitals:
  the partition of Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019,
  arXiv:1905.12022, §4. Hospitals differ in mix and in size.
- Scaled so that each *column* adds up to the same, each hospital's mix is Dirichlet(α) over the groups (as in Hsu et
  al. 2019, arXiv:1909.06335, with a flat prior); scaled in turn until rows *and* columns fit, every patient is used
  once, hospitals are equally large, and the mix alone differs. With the few groups of views, ages or sexes, rows alone
  would mostly make large and small hospitals: with α = 0.1 two sexes hardly reach more than two of them.

Shapes: G groups, H hospitals.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

MAX_SCALINGS = 2000  # α ≥ 0.1 takes a few hundred at most; for α near 0.01 sizes may stay a few percent apart
SIZE_TOLERANCE = 0.5  # patients


def lognormal_shares(num_hospitals: int, *, sigma: float, random: np.random.Generator) -> Floats:
    """Gives [H] shares of the patients, exp(σ·normal) scaled to add up to 1."""
    sizes = np.exp(sigma * random.standard_normal(num_hospitals))
    return np.asarray(sizes / sizes.sum())


def dirichlet_shares(
    patients_of_groups: Counts, num_hospitals: int, *, alpha: float, random: np.random.Generator
) -> Floats:
    """Gives [G, H] shares of each group's patients, each row drawn from Dirichlet(α), however many they are."""
    logs = _log_gamma((patients_of_groups.size, num_hospitals), alpha, random)
    return np.asarray(np.exp(logs - _log_sums(logs, axis=1)))


def equal_size_shares(
    patients_of_groups: Counts, num_hospitals: int, *, alpha: float, random: np.random.Generator
) -> Floats:
    """Gives [G, H] shares of each group's patients that make all hospitals equally large.

    Args:
        patients_of_groups: [G] patients, at least one in each group.
        num_hospitals: H.
        alpha: α of each hospital's mix.
        random: Where the draw comes from.
    """
    logs = _log_gamma((patients_of_groups.size, num_hospitals), alpha, random)
    rows = np.log(patients_of_groups.astype(np.float64))[:, np.newaxis]
    size = patients_of_groups.sum() / num_hospitals
    for _ in range(MAX_SCALINGS):
        logs += np.log(size) - _log_sums(logs, axis=0)
        logs += rows - _log_sums(logs, axis=1)
        if np.abs(np.exp(_log_sums(logs, axis=0)) - size).max() < SIZE_TOLERANCE:
            break
    return np.asarray(np.exp(logs - rows))


def whole_patients(shares: Floats, patients_of_groups: Counts, random: np.random.Generator) -> Counts:
    """Gives [G, H] whole numbers of patients with the groups' sums, each less than one away from its share.

    Each row is cut at its cumulated shares from a random start, so that on average nothing is rounded up or down: a
    group of one patient goes to each hospital as often as its share says.
    """
    ends = np.cumsum(shares, axis=1) * patients_of_groups[:, np.newaxis]
    starts = random.uniform(size=(shares.shape[0], 1))
    cuts = np.minimum(np.floor(ends + starts).astype(np.int64), patients_of_groups[:, np.newaxis])
    cuts[:, -1] = patients_of_groups
    return np.diff(cuts, axis=1, prepend=0)


def _log_gamma(shape: tuple[int, int], alpha: float, random: np.random.Generator) -> Floats:
    """Logarithms of Gamma(α) variates, which themselves would underflow for small α: Gamma(α+1)·U^(1/α)."""
    uniforms = 1.0 - random.uniform(size=shape)  # in (0, 1]
    return np.asarray(np.log(random.standard_gamma(alpha + 1.0, size=shape)) + np.log(uniforms) / alpha)


def _log_sums(logs: Floats, *, axis: int) -> Floats:
    largest = logs.max(axis=axis, keepdims=True)
    return np.asarray(largest + np.log(np.exp(logs - largest).sum(axis=axis, keepdims=True)))
