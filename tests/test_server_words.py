"""How the centre says numbers and times."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from server.words import counted, moment, round_named


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_one_is_singular_and_none_is_plural():
    assert [counted(number, "hospital") for number in (0, 1, 2)] == ["0 hospitals", "1 hospital", "2 hospitals"]


def test_a_time_has_its_zone_and_its_day_where_that_is_not_today():
    now = datetime.now(UTC).astimezone()
    today = now.replace(hour=12, minute=5, second=7)
    assert moment(today.astimezone(UTC).isoformat()) == f"12:05:07 {today:%Z}"
    other = today + timedelta(days=2)
    assert moment(other.isoformat()).startswith(f"{other:%Y-%m-%d} 1")
    assert moment("2020-01-01T23:30:00+00:00") == "2020-01-02 00:30:00 CET"


def test_what_comes_after_the_last_round_is_its_evaluation():
    assert [round_named(number, 3) for number in (3, 4)] == ["round 3", "evaluation after round 3"]
    assert round_named(4, None) == "round 4"
