"""The fourteen findings of ChestX-ray14 in the one order used everywhere (Wang et al., CVPR 2017)."""

import difflib
import re

from aecnn.errors import UnknownFindingError

FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NUM_FINDINGS = len(FINDINGS)
NO_FINDING = "No Finding"

_SYNONYMS = {"infiltrate": "infiltration"}  # the official box file's spelling


def _normalised(spelling: str) -> str:
    joined = re.sub(r"[\s_-]", "", spelling.lower())
    return _SYNONYMS.get(joined, joined)


_INDEX = {_normalised(name): index for index, name in enumerate(FINDINGS)}


def finding_index(spelling: str) -> int:
    """Gives the position of a finding in `FINDINGS`, whatever its case, spaces, hyphens or underscores.

    Raises:
        UnknownFindingError: The spelling is none of the fourteen; the nearest known one is named.
    """
    index = _INDEX.get(_normalised(spelling))
    if index is None:
        raise UnknownFindingError(f"unknown finding {spelling!r}{nearest_hint(spelling, FINDINGS)}")
    return index


def nearest_hint(found: str, known: tuple[str, ...]) -> str:
    """Gives ``; did you mean 'X'?`` for the nearest known name, or an empty string where none is near."""
    by_letters = {name.lower(): name for name in known}
    near = difflib.get_close_matches(found.lower(), list(by_letters), n=1, cutoff=0.6)
    return f"; did you mean {by_letters[near[0]]!r}?" if near else ""
