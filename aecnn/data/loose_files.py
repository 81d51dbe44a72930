"""Radiographs that no table describes, as a manifest: of an image its file's name is known, and nothing else."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aecnn.data.manifest import Manifest
from aecnn.errors import ManifestError
from aecnn.findings import NUM_FINDINGS


def manifest_of_files(paths: Sequence[Path]) -> Manifest:
    """Gives the manifest of some files: no findings are labelled, and each file counts as a patient of its own.

    Raises:
        ManifestError: Two files have one name, by which a table could not tell them apart.
    """
    names = [path.name for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        places = {name: ", ".join(str(path) for path in paths if path.name == name) for name in twice}
        raise ManifestError(
            "the images given",
            [f"{places[name]}: have one name, and the table knows images by it: rename one" for name in twice],
        )
    unknown = pd.Series([None] * len(names), dtype=str)
    table = pd.DataFrame(
        {
            "image": pd.Series(names, dtype=str),
            "path": pd.Series([str(path.absolute()) for path in paths], dtype=str),
            "patient": pd.Series(names, dtype=str),
            "age_years": np.full(len(names), np.nan),
            "sex": unknown,
            "view": unknown,
            "split": unknown,
        }
    )
    targets = np.full((len(names), NUM_FINDINGS), np.nan, dtype=np.float32)
    return Manifest(Path.cwd(), table, targets)
