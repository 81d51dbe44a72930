"""One dataset as several hospitals, by patient: a patient is never in two of them.

What the kinds make of one dataset (see `simulations.shares` for the draws, `simulations.case_mix` for the groups):

- ``equal``: hospitals of the same size and, but for chance, the same mix.
- ``sizes``: hospitals of given, or of log-normal, sizes and the same mix.
- ``labels``: the patients of each (rarest) finding are shared out by Dirichlet(α): hospitals differ in mix and size.
- ``view``, ``age``, ``sex``: hospitals of the same size whose shares of views, ages or sexes differ by Dirichlet(α).
- ``scanner``: the patients of ``equal``, whose images are shifted when they are read (see `simulations.scanners`).
- ``manifest``: as a file says, such as the one that every partition leaves.

The draws follow from the seed and the set of patients, never from the order of rows. They are NumPy's, which may change
between its versions; the written patients.csv is what lasts.
"""

from pathlib import Path

import numpy as np

from aecnn.config import PartitionConfig
from aecnn.data.manifest import Manifest
from aecnn.errors import ManifestError
from aecnn.training.seeds import derive_seed
from simulations.case_mix import Trait, patients_by_trait
from simulations.patients_file import Partition, read_patients_file
from simulations.shares import Counts, dirichlet_shares, equal_size_shares, lognormal_shares, whole_patients

MAX_DRAWS = 1000  # of random shares, until every hospital has min_patients


def partition_patients(manifest: Manifest, config: PartitionConfig, *, seed: int) -> Partition:
    """Gives each hospital's patients.

    Args:
        manifest: The images to share out; test images should be left out before.
        config: How to share.
        seed: Decides who goes where, for the random kinds.

    Raises:
        ManifestError: There are too few patients, no draw gives every hospital enough, or the file of `by: manifest`
            is faulty.
    """
    patients = sorted(set(manifest.table["patient"]))
    if config.by == "manifest":
        partition = read_patients_file(manifest.root / config.file, patients)
        _require_enough(manifest.root, {name: len(own) for name, own in partition.items()}, config)
    else:
        partition = _by_draw(manifest, patients, config, seed)
    if config.max_patients is not None:
        partition = {
            name: sorted(_shuffled(own, derive_seed(seed, "max_patients", name))[: config.max_patients])
            for name, own in partition.items()
        }
    return partition


def hospital_name(index: int, count: int) -> str:
    """Gives ``hospital-1`` …, with leading zeros where there are ten or more, so that names sort as numbers."""
    return f"hospital-{index + 1:0{len(str(count))}d}"


def _by_draw(manifest: Manifest, patients: list[str], config: PartitionConfig, seed: int) -> Partition:
    num_hospitals = config.num_hospitals or len(config.sizes or ())
    if len(patients) < num_hospitals * config.min_patients:
        each = f" of at least {config.min_patients} patients" if config.min_patients > 1 else ""
        raise ManifestError(
            manifest.root,
            [f"has {len(patients)} patients for {num_hospitals} hospitals{each}: ask for fewer hospitals"],
        )
    if config.by in ("labels", "view", "age", "sex"):
        shuffled = _shuffled_groups(manifest, config.by, seed)
    else:
        shuffled = [_shuffled(patients, derive_seed(seed, "partition"))]
    sizes = np.array([len(own) for own in shuffled])
    counts = _draw_until_enough(manifest.root, config, sizes, num_hospitals, seed)
    names = [hospital_name(index, num_hospitals) for index in range(num_hospitals)]
    partition: Partition = {name: [] for name in names}
    for own, row in zip(shuffled, counts, strict=True):
        ends = np.cumsum(row)
        for name, start, end in zip(names, ends - row, ends, strict=True):
            partition[name] += own[start:end]
    return {name: sorted(own) for name, own in partition.items()}


def _shuffled_groups(manifest: Manifest, trait: Trait, seed: int) -> list[list[str]]:
    """The patients of each group, each group in an order of its own."""
    groups = patients_by_trait(manifest, trait)
    names = [str(name) for name in groups.cat.categories]
    if len(names) == 1:
        problem = f"all {len(groups)} patients are {names[0]!r}, so hospitals cannot differ by {trait}"
        raise ManifestError(manifest.root, [f"{problem}: share by something else"])
    return [_shuffled(groups.index[groups == name].tolist(), derive_seed(seed, "partition", name)) for name in names]


def _draw_until_enough(root: Path, config: PartitionConfig, sizes: Counts, num_hospitals: int, seed: int) -> Counts:
    """[G, H] patients of each group at each hospital; random shares are redrawn until every hospital has enough."""
    is_random = config.alpha is not None or config.sigma is not None
    most = -1
    for draw in range(MAX_DRAWS if is_random else 1):
        random = np.random.default_rng(derive_seed(seed, "shares", config.by, draw))
        counts = _draw_counts(config, sizes, num_hospitals, random)
        fewest = int(counts.sum(axis=0).min())
        if fewest >= config.min_patients:
            return counts
        most = max(most, fewest)
    if not is_random:
        totals = enumerate(counts.sum(axis=0).tolist())
        _require_enough(root, {hospital_name(index, num_hospitals): total for index, total in totals}, config)
    remedy = "a smaller sigma" if config.alpha is None else "a larger alpha"
    raise ManifestError(
        root,
        [
            f"{MAX_DRAWS} draws by {config.by} never gave each of {num_hospitals} hospitals min_patients "
            f"{config.min_patients}, the best gave {most}: ask for {remedy}, fewer hospitals or a lower min_patients"
        ],
    )


def _draw_counts(config: PartitionConfig, sizes: Counts, num_hospitals: int, random: np.random.Generator) -> Counts:
    if config.alpha is not None:
        draw_shares = dirichlet_shares if config.by == "labels" else equal_size_shares
        return whole_patients(draw_shares(sizes, num_hospitals, alpha=config.alpha, random=random), sizes, random)
    if config.sigma is not None:
        shares = lognormal_shares(num_hospitals, sigma=config.sigma, random=random)
    else:
        shares = np.array(config.sizes or [1.0] * num_hospitals)
    ends = np.rint(np.cumsum(shares / shares.sum()) * sizes.sum()).astype(np.int64)
    return np.asarray(np.diff(ends, prepend=0)[np.newaxis])


def _require_enough(root: Path, patients_of: dict[str, int], config: PartitionConfig) -> None:
    few = [f"{name} got {count or 'none'}" for name, count in patients_of.items() if count < config.min_patients]
    if few:
        problem = f"{sum(patients_of.values())} patients are too few for these shares: {', '.join(few)}"
        remedy = f"of at least {config.min_patients}; ask for other shares, fewer hospitals or a lower min_patients"
        raise ManifestError(root, [f"{problem} {remedy}"])


def _shuffled(patients: list[str], seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(patients))
    return [patients[index] for index in order]
