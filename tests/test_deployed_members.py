"""What hospitals may do in the middle of a run: upgrade, change their key, pause, come back, withdraw."""

import json
import shutil
from pathlib import Path

import pytest

from aecnn import contract
from aecnn.contract import code_fingerprint
from aecnn.model.checkpoint import load_checkpoint
from conftest import PROJECT
from deployed_federation import Deployed, command, deploy, edit, simulated_weights, typed_here
from federation_in_process import same_weights, small_config
from server.roster import read_roster

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def _earlier_version(folder: Path) -> Path:
    """The same packages with another fingerprint."""
    for package in ("aecnn", "client", "server"):
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "client" / "worker.py").open("a") as file:
        file.write("# as it was before\n")
    return folder


def _enroll_anew(deployed: Deployed, name: str) -> None:
    request = deployed.hospitals[name] / "enrolment-request.json"
    typed_here("flower-server", "enroll", name, request, "--yes", "--replace", "--folder", deployed.centre)


def test_an_upgrade_and_a_new_key_in_the_middle_of_a_run_change_no_bit(phantom_64px, tmp_path):
    """The centre goes first and accepts the earlier code; one hospital follows in the run, another changes its key."""
    config = small_config(phantom_64px, federation={"num_rounds": 4, "min_hospitals": 3, "round_timeout_s": 600})
    deployed, earlier = deploy(tmp_path, config), _earlier_version(tmp_path / "earlier")
    centre, late = deployed.centre, deployed.hospitals["hospital-3"]
    command("aecnn-client", "request", "--folder", late, code_of=earlier)
    _enroll_anew(deployed, "hospital-3")
    fingerprint = json.loads((late / "enrolment-request.json").read_text())["code_fingerprint"]
    assert fingerprint != code_fingerprint()
    log = centre / "state" / "logs" / "coordinator.log"
    try:
        deployed.start("centre", "hospital-1")
        deployed.start("hospital-3", code_of=earlier)
        deployed.wait_for(lambda: "hospital-3 may not join: runs other code" in log.read_text(), "the refusal", 240)
        command("flower-server", "stop", "--folder", centre)
        edit(centre / "server.yaml", accepted_fingerprints=[fingerprint])
        typed_here("flower-server", "federation", "--folder", centre)
        deployed.start("centre", "hospital-2")

        deployed.wait_for(lambda: len(deployed.rounds()) >= 1, "round 1", 240)
        typed_here("aecnn-client", "stop", "--folder", late)
        shutil.copyfile(centre / "federation.yaml", late / "federation.yaml")
        deployed.start("hospital-3")
        changed = deployed.hospitals["hospital-2"]
        typed_here("aecnn-client", "stop", "--folder", changed)
        typed_here("aecnn-client", "rotate-key", "--folder", changed)
        assert (changed / "hospital.key.old").exists()
        _enroll_anew(deployed, "hospital-2")
        deployed.start("hospital-2")
        assert deployed.wait_for_end(300) == 0, deployed.logs()
    finally:
        deployed.stop()
    released = load_checkpoint(deployed.run_folder() / "global.safetensors")
    assert same_weights(released.weights, simulated_weights(config, deployed))
    assert [len(event["admitted"]) for event in deployed.rounds()] == [3, 3, 3, 3]
    assert fingerprint in (late / "federation.yaml").read_text()
    assert not (changed / "hospital.key.old").exists(), "the new key has connected"
    keys = [hospital for hospital in read_roster(centre / "hospitals.json").hospitals if hospital.name == "hospital-2"]
    assert [key.revoked_at is None for key in keys] == [False, True]


def test_the_centre_goes_on_without_a_hospital_that_pauses_or_withdraws_and_knows_it_by_code(phantom_64px, tmp_path):
    """A pause lasts longer than a round waits; the hospital is back in the next one. A withdrawal is for good."""
    waits_s = 28  # less than until a hospital that pauses is asked again
    federation = {"num_rounds": 6, "min_hospitals": 2, "round_timeout_s": waits_s, "max_failed_rounds": 5}
    deployed = deploy(tmp_path, small_config(phantom_64px, federation=federation))
    pausing, leaving = deployed.hospitals["hospital-3"], deployed.hospitals["hospital-1"]
    try:
        deployed.start("centre", *deployed.hospitals)
        deployed.wait_for(lambda: "hospital-3" in _admitted(deployed)[-1], "a round of hospital-3", 240)
        typed_here("aecnn-client", "pause", "--folder", pausing)
        deployed.wait_for(lambda: _last_decision(pausing).startswith("refused (code 105)"), "its answer: later", 60)
        typed_here("aecnn-client", "resume", "--folder", pausing)
        before = len(deployed.rounds())
        deployed.wait_for(lambda: "hospital-3" in _admitted(deployed)[before + 1], "hospital-3 to be back", 240)
        typed_here("aecnn-client", "withdraw", "--yes", "--folder", leaving)
        assert deployed.wait_for_end(300) == 0, deployed.logs()
    finally:
        deployed.stop()
    without = deployed.rounds()[before]
    assert without["admitted"] == ["hospital-1", "hospital-2"]
    assert without["refused"]["hospital-3"].startswith("code 105")
    assert without["seconds"] >= waits_s
    assert _admitted(deployed)[-1] == ["hospital-2", "hospital-3"]
    (left,) = [event for event in deployed.history() if event["event"] == "left"]
    assert (left["hospital"], left["reason"]) == ("hospital-1", contract.CODE_TEXT[contract.CODE_WITHDRAWN])
    (delivered,) = [event for event in deployed.history() if event["event"] == "delivered"]
    assert delivered["hospitals"] == ["hospital-2", "hospital-3"]
    assert not list(leaving.glob("models/*/*"))
    assert "code 106" in command("aecnn-client", "audit", "--folder", leaving).stdout


def _admitted(deployed: Deployed) -> list[list[str]]:
    """Whose updates were averaged, by round."""
    return [event["admitted"] for event in deployed.rounds()]


def _last_decision(hospital: Path) -> str:
    """Of the newest line of a hospital's audit log."""
    return json.loads((hospital / "audit.jsonl").read_text().splitlines()[-1])["decision"]
