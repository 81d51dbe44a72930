"""Spellings of the findings."""

import pytest

from aecnn.errors import UnknownFindingError
from aecnn.findings import FINDINGS, finding_index


@pytest.mark.parametrize("name", FINDINGS)
def test_case_spaces_hyphens_and_underscores_do_not_matter(name):
    for spelling in (name, name.upper(), name.replace("_", " "), name.replace("_", "-"), f" {name.lower()} "):
        assert FINDINGS[finding_index(spelling)] == name


def test_the_box_files_infiltrate_is_infiltration():
    assert FINDINGS[finding_index("Infiltrate")] == "Infiltration"


@pytest.mark.parametrize("spelling", ["Mass2", "Mass?", "Mass=0", "Mass.1", "1.Edema", "No Finding", "", "Mas"])
def test_anything_else_is_refused(spelling):
    with pytest.raises(UnknownFindingError, match="unknown finding"):
        finding_index(spelling)


def test_the_nearest_name_is_offered():
    with pytest.raises(UnknownFindingError, match="did you mean 'Pneumothorax'"):
        finding_index("Pneumotorax")
