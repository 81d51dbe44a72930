"""The records that cross the wire: what they carry, and what is refused on arrival."""

import pytest

from aecnn.contract import HospitalCounts, Request, RoundReport, code_fingerprint, told
from aecnn.errors import ConfigError, FederationError

COUNTS = {
    "num-train-images": 10,
    "num-train-patients": 4,
    "num-validation-images": 3,
    "num-validation-patients": 1,
    "num-skipped-images": 0,
    "positives": [1] * 14,
}
REPORT = {
    "num-images": 10,
    "num-steps": 2,
    "images-seen": 16,
    "bce-sum": 4.0,
    "mse-sum": 0.1,
    "alive-pixels": 5,
    "lit-pixels": 6,
    "seconds": 1.0,
}


def test_records_survive_the_wire_with_kebab_case_keys():
    assert HospitalCounts.from_wire(COUNTS).to_wire() == COUNTS
    assert RoundReport.from_wire(REPORT).to_wire() == REPORT


@pytest.mark.parametrize(
    ("kind", "record", "told"),
    [
        (HospitalCounts, COUNTS | {"positives": [-5] * 14}, "positives"),
        (HospitalCounts, COUNTS | {"positives": [1] * 13}, "positives"),
        (HospitalCounts, COUNTS | {"positives": [11] + [0] * 13}, "11 positive images among 10"),
        (HospitalCounts, COUNTS | {"num-train-patients": 99}, "99 patients with 10 images"),
        (RoundReport, REPORT | {"num-images": 0}, "num-images"),
        (RoundReport, REPORT | {"bce-sum": -1.0}, "bce-sum"),
        (RoundReport, REPORT | {"mse-sum": float("nan")}, "mse-sum"),
        (RoundReport, REPORT | {"patient-4711-score": 0.9}, "no such key"),
        (RoundReport, {"num-images": 3}, "is missing"),
    ],
)
def test_records_outside_the_contract_are_refused(kind, record, told):
    with pytest.raises(ConfigError) as refused:
        kind.from_wire(record)
    assert told in str(refused.value)


def test_many_unknown_keys_are_refused_at_once_and_in_few_words():
    """The nearest known key of each was looked for: 20,000 keys took 17 s, and megabytes of log."""
    with pytest.raises(ConfigError) as refused:
        RoundReport.from_wire(REPORT | {f"num-image-{number}" + "x" * 90: 1 for number in range(20_000)})
    assert "did you mean" not in str(refused.value)
    assert "and 19995 more" in str(refused.value)
    assert len(str(refused.value)) < 500


def test_what_a_stranger_chose_is_told_short_and_without_control_characters():
    assert told("a\x1b[2Jb\n–é") == r"a\x1b[2Jb\n–é"
    assert len(told("\x1b" * 10_000)) == 200
    assert told("x" * 200) == "x" * 200


def test_a_request_whose_plan_is_none_is_refused():
    request = {"run": "r", "run-id": "0" * 16, "round": 1, "seed": 0, "validation-fraction": 0.1}
    with pytest.raises(FederationError, match="not JSON"):
        _ = Request.from_wire(request | {"plan-json": "{"}).plan
    with pytest.raises(ConfigError, match=r"model: is missing"):
        _ = Request.from_wire(request | {"plan-json": "{}"}).plan


def test_the_fingerprint_is_one_of_the_code_and_stays():
    assert len(code_fingerprint()) == 64
    assert code_fingerprint() == code_fingerprint()
