"""The README and what it points to."""

import re

from conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_every_local_link_and_named_file_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:configs|aecnn|client|server|simulations)/[\w/]+\.(?:yaml|py))`", README)
    assert len(links) >= 2
    assert len(named) >= 5
    assert [path for path in links + named if not (PROJECT / path).exists()] == []


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\{[A-Z_]+\}|TODO|TBD", README) == []
