"""The keyed division of patients: fixed for ever, by patient, of the expected size."""

import hashlib
import hmac
import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aecnn.data.manifest import read_manifest
from aecnn.data.split import in_validation

PATIENTS = [str(number) for number in range(1, 20_001)]
FIRST_IN_VALIDATION = [6, 13, 19, 28, 31, 38, 47, 52, 58]  # by `openssl dgst -sha256 -hmac validation`


def test_these_patients_are_in_validation_for_ever() -> None:
    assert np.flatnonzero(in_validation(PATIENTS[:60], fraction=0.1, key="validation")).tolist() == FIRST_IN_VALIDATION


def test_the_hash_decides_as_documented() -> None:
    for patient, found in zip(PATIENTS[:200], in_validation(PATIENTS[:200], fraction=0.3, key="köln"), strict=True):
        digest = hmac.new("köln".encode(), patient.encode(), hashlib.sha256).hexdigest()
        assert found == (int(digest[:16], 16) / 16**16 < 0.3)


def test_the_share_of_patients_is_the_fraction() -> None:
    for fraction in (0.05, 0.1, 0.5):
        share = in_validation(PATIENTS, fraction=fraction, key="a").mean()
        assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(PATIENTS))


def test_keys_divide_independently() -> None:
    first, second = (in_validation(PATIENTS, fraction=0.5, key=key) for key in ("a", "b"))
    assert abs((first & second).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(PATIENTS))


def test_nobody_and_everybody_are_possible() -> None:
    assert not in_validation(PATIENTS, fraction=0.0, key="a").any()
    assert in_validation(PATIENTS, fraction=1.0, key="a").all()
    assert in_validation([], fraction=0.5, key="a").shape == (0,)


def test_a_larger_fraction_only_adds_patients() -> None:
    small, large = (in_validation(PATIENTS, fraction=fraction, key="a") for fraction in (0.1, 0.2))
    assert (large | ~small).all()


@given(st.lists(st.text(max_size=8), max_size=60), st.floats(0, 1), st.text(max_size=5), st.randoms())
def test_a_patient_is_in_one_part_whatever_the_order_and_the_others(
    patients: list[str], fraction: float, key: str, draw: random.Random
) -> None:
    parts = dict(zip(patients, in_validation(patients, fraction=fraction, key=key), strict=True))
    again = draw.choices([*patients, "new"], k=40)
    for patient, part in zip(again, in_validation(again, fraction=fraction, key=key), strict=True):
        assert part == parts.setdefault(patient, part)


def test_no_real_patient_is_in_both_parts(real_data: Path) -> None:
    table = read_manifest(real_data / "nih_64px").table
    mask = in_validation(table["patient"].tolist(), fraction=0.2, key="hospital-1")
    assert set(table["patient"][mask]).isdisjoint(table["patient"][~mask])
    assert 0.1 < mask.mean() < 0.35
