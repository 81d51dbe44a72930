"""A real federation with patient-level differential privacy, where each hospital's ledger has the last word."""

import json

import pytest

from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from deployed_federation import HOSPITALS, command, deploy, edit, kill, typed_here
from federation_in_process import small_config

pytestmark = [pytest.mark.flower, pytest.mark.slow]

NOISE, SAMPLE_RATE, STEPS, ROUNDS, DELTA, DECLARED = 2.0, 0.5, 2, 3, 1e-5, 12


def _epsilon(rounds: int) -> float:
    return epsilon_of([Mechanism(NOISE, SAMPLE_RATE, rounds * STEPS)], delta=DELTA)


def test_who_has_spent_the_budget_answers_with_a_code_and_a_killed_worker_pays_once(phantom_64px, tmp_path):
    config = small_config(
        phantom_64px,
        federation={"num_rounds": ROUNDS, "min_hospitals": 2},
        model={"normalisation": "group"},
        training={
            "local_steps": STEPS,
            "privacy": {"noise_multiplier": NOISE, "sample_rate": SAMPLE_RATE, "delta": DELTA},
        },
    )
    deployed = deploy(tmp_path, config)
    for name, folder in deployed.hospitals.items():
        cap = (_epsilon(1) + _epsilon(2)) / 2 if name == "hospital-3" else 2 * _epsilon(ROUNDS)
        privacy = {"patients": DECLARED, "max_epsilon": cap, "ledger_folder": str(tmp_path / f"ledger-{name}")}
        edit(folder / "site.yaml", policy={"accept": {"requires_privacy": True}, "privacy": privacy})
        typed_here("aecnn-client", "budget", "--folder", folder, "--adopt-ledger", "--yes")
    try:
        deployed.start("centre", *HOSPITALS)
        deployed.wait_for(lambda: len(deployed.rounds()) >= 1, "round 1", 300)
        kill(deployed, "hospital-1", "client.worker")
        assert deployed.wait_for_end(400) == 0, deployed.logs()
    finally:
        deployed.stop()

    first, *later = deployed.rounds()
    assert first["admitted"] == list(HOSPITALS)
    for event in later:
        assert event["admitted"] == ["hospital-1", "hospital-2"]
        assert "code 107" in event["refused"]["hospital-3"]
    assert {name: _spent(folder) for name, folder in deployed.hospitals.items()} == pytest.approx(
        {"hospital-1": _epsilon(ROUNDS), "hospital-2": _epsilon(ROUNDS), "hospital-3": _epsilon(1)}
    )
    told = deployed.rounds()[-1]["privacy"]["hospital-1"]["epsilon"]
    assert told == pytest.approx(_epsilon(ROUNDS))  # the same number at the centre
    card = json.loads((deployed.run_folder() / "model_card.json").read_text())
    assert card["privacy"]["patients"]["hospitals"]["hospital-1"]["epsilon"] == told
    _assert_only_what_was_promised_left(deployed.hospitals["hospital-1"])


def _spent(folder) -> float:
    return json.loads(command("aecnn-client", "budget", "--folder", folder, "--json").stdout)["epsilon"]


def _assert_only_what_was_promised_left(folder) -> None:
    """The audit log has every scalar of every answer."""
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    records = [line["records"] for line in lines if line["direction"] == "out" and line["records"]]
    assert sum("weights" in record for record in records) >= ROUNDS
    for record in records:
        assert set(record) <= {"origin", "audit", "counts", "report", "weights"}
        text = json.dumps(record)
        assert not any(word in text for word in ("bce-sum", "images-seen", "seconds", "positives", "score-counts"))
