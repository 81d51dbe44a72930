"""Which group each image belongs to: its patient's sex, age band and hospital, and how the patient was placed.

AUROC by group shows a model that serves some patients worse (Seyyed-Kalantari et al., Nature Medicine 2021). The view
position is also a shortcut: patients too ill to stand are taken from the front (AP), so a model that only told AP from
PA would score above one half (Zech et al., PLOS Medicine 2018). `view_scores` gives the most that it could.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aecnn.data.columns import AGE_BANDS, age_bands
from aecnn.evaluation.auroc import Float64s, Floats

MIN_PATIENTS = 10  # fewer, and a group's figures are not shown
Groups = Mapping[str, NDArray[np.object_]]  # attribute -> [N] group of each image, None where it is not known


def groups_of(table: pd.DataFrame) -> Groups:
    """Gives the groups of a table's images; an attribute of which nothing is known is left out.

    Args:
        table: [N] rows with any of the columns ``sex``, ``age_years``, ``view`` (as `Manifest.table` has them) and
            ``hospital``.
    """
    columns = {name: table[name] for name in ("sex", "view", "hospital") if name in table}
    if "age_years" in table:
        columns["age"] = age_bands(table["age_years"].reset_index(drop=True)).astype(object)
    known = {name: column for name, column in columns.items() if column.notna().any()}
    return {
        name: np.array([None if pd.isna(cell) else str(cell) for cell in known[name]], dtype=object)
        for name in ("sex", "age", "view", "hospital")
        if name in known
    }


def names_of(attribute: str, groups: Sequence[str | None] | NDArray[np.object_]) -> list[str]:
    """Gives an attribute's groups, each once: ages from young to old, others by the alphabet."""
    found = {group for group in groups if group is not None}
    return [band for band in AGE_BANDS if band in found] if attribute == "age" else sorted(found)


def view_scores(views: NDArray[np.object_], targets: Floats) -> tuple[Float64s, Float64s] | None:
    """Gives each image the share of images of its view position that have the finding, as if that were a prediction.

    The shares are those of these very images, which is the best that the view alone could do on them.

    Args:
        views: [N], None where it is not known.
        targets: [N, F] in {0, 1, NaN}.

    Returns:
        Scores and targets, [N, F] both, NaN where the view or the target is not known; None where all images are of
        one view.
    """
    names = names_of("view", views)
    if len(names) < 2:
        return None
    scores, known = np.zeros(targets.shape), np.array(targets, dtype=np.float64)
    known[[view is None for view in views]] = np.nan
    for name in names:
        rows = views == name
        positive, labelled = (known[rows] == 1).sum(axis=0), (~np.isnan(known[rows])).sum(axis=0)
        scores[rows] = np.divide(positive, labelled, out=np.zeros(targets.shape[1]), where=labelled > 0)
    return scores, known
