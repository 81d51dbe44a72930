"""What a patient is, in one word each: the groups by which hospitals' case mixes differ and are counted.

Shapes: N images, P patients, G groups, 14 findings.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.data.columns import age_bands
from aecnn.data.manifest import Manifest
from aecnn.findings import FINDINGS, NO_FINDING, NUM_FINDINGS

Trait = Literal["labels", "view", "age", "sex"]

NOT_LABELLED = "Not labelled"  # none of a patient's images says anything about any finding
UNKNOWN = "unknown"


def patients_by_trait(manifest: Manifest, trait: Trait) -> pd.Series:
    """Gives each patient's group, one group a patient however many images there are.

    - ``labels``: the patient's rarest finding, or `NO_FINDING`. Of all the findings in a patient's images the one that
      the fewest patients have counts (of equally rare ones the first in `FINDINGS`), so that the rare findings, of
      which a hospital may have too few to learn from, lie exactly where the partition puts them.
    - ``view``: the commonest view of the patient's images; of equally common ones the first in the alphabet.
    - ``age``: the band of the median age.
    - ``sex``: as given; of contradictory ones as for the view.

    Returns:
        Categories indexed by patient, both sorted; what is not known is a group of its own, the last.
    """
    return _GROUPERS[trait](manifest)


def _rarest_findings(manifest: Manifest) -> pd.Series:
    codes, patients = pd.factorize(manifest.table["patient"], sort=True)
    has = np.zeros((len(patients), NUM_FINDINGS), dtype=bool)  # [P, 14]
    rows, columns = np.nonzero(manifest.targets == 1.0)
    has[codes[rows], columns] = True
    is_labelled = np.zeros(len(patients), dtype=bool)
    is_labelled[codes[~np.isnan(manifest.targets).all(axis=1)]] = True
    rarity = np.where(has, has.sum(axis=0), np.iinfo(np.int64).max)  # [P, 14]: a finding's patients, where it is there
    keys = np.where(has.any(axis=1), rarity.argmin(axis=1), np.where(is_labelled, NUM_FINDINGS, NUM_FINDINGS + 1))
    return _categories(keys, (*FINDINGS, NO_FINDING, NOT_LABELLED), patients)


def _ages(manifest: Manifest) -> pd.Series:
    bands = age_bands(manifest.table.groupby("patient", sort=True)["age_years"].median())
    return bands.cat.add_categories(UNKNOWN).fillna(UNKNOWN).cat.remove_unused_categories()


def _commonest(column: str) -> Callable[[Manifest], pd.Series]:
    def group(manifest: Manifest) -> pd.Series:
        codes, patients = pd.factorize(manifest.table["patient"], sort=True)
        value_codes, values = pd.factorize(manifest.table[column], sort=True)
        counts = np.zeros((len(patients), len(values) + 1), dtype=np.int64)  # [P, G]
        is_known = value_codes >= 0
        np.add.at(counts, (codes[is_known], value_codes[is_known]), 1)
        keys = np.where(counts.any(axis=1), counts.argmax(axis=1), len(values))
        return _categories(keys, (*(str(value) for value in values), UNKNOWN), patients)

    return group


def _categories(keys: npt.NDArray[np.int64], names: tuple[str, ...], patients: pd.Index) -> pd.Series:
    present = [key for key in range(len(names)) if (keys == key).any()]
    renumbered = np.searchsorted(present, keys)
    groups = pd.Categorical.from_codes(renumbered, categories=pd.Index([names[key] for key in present]))
    return pd.Series(groups, index=patients)


_GROUPERS: dict[Trait, Callable[[Manifest], pd.Series]] = {
    "labels": _rarest_findings,
    "view": _commonest("view"),
    "age": _ages,
    "sex": _commonest("sex"),
}
