"""The real federation on one machine: the commands of the README, real SuperLink, SuperNodes, TLS and SQLite."""

import json

import pytest

from aecnn.model.checkpoint import load_checkpoint
from deployed_federation import HOSPITALS, command, deploy, simulated_weights
from federation_in_process import same_weights, small_config

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def _assert_tls_only(stream: bytearray) -> None:
    """One direction of a TLS connection is nothing but TLS records, each of a known type and version."""
    position, kinds = 0, set()
    while position + 5 <= len(stream):
        kind, major, length = (
            stream[position],
            stream[position + 1],
            int.from_bytes(stream[position + 3 : position + 5]),
        )
        assert kind in (20, 21, 22, 23), f"byte {position} begins no TLS record"
        assert major == 3
        kinds.add(kind)
        position += 5 + length
    assert 22 in kinds  # a handshake


def test_a_deployed_run_gives_the_simulations_weights_and_every_hospital_gets_them(phantom_64px, tmp_path):
    config = small_config(phantom_64px, federation={"num_rounds": 3, "min_hospitals": 3})
    deployed = deploy(tmp_path, config, with_proxy=True)
    try:
        deployed.start("centre", *HOSPITALS)
        assert deployed.wait_for_end(300) == 0, deployed.logs()
    finally:
        deployed.stop()
    run = deployed.run_folder()
    released = load_checkpoint(run / "global.safetensors")
    assert same_weights(released.weights, simulated_weights(config, deployed))
    assert [event["round"] for event in deployed.rounds()] == [1, 2, 3]
    assert next(event for event in deployed.history() if event["event"] == "end")["status"] == "completed"
    assert (run / "report.html").stat().st_size > 10_000
    for name, folder in deployed.hospitals.items():
        (delivered,) = folder.glob("models/*/global.safetensors")
        assert same_weights(load_checkpoint(delivered).weights, released.weights), name
        assert (delivered.parent / "report.html").exists()
        assert "not for clinical use" in (delivered.parent / "model_card.md").read_text().lower()
        told = command("aecnn-client", "audit", "--folder", folder).stdout
        assert "round 3" in told
        assert (folder / "hospital.key").stat().st_mode & 0o777 == 0o600
    streams = [stream for stream in deployed.proxy.streams if stream]
    assert sum(map(len, streams)) > 3 * 3 * 40_000_000  # the models went this way, and as TLS only
    for stream in streams:
        _assert_tls_only(stream)
    listed = json.loads(command("flower-server", "runs", "--folder", deployed.centre, "--json").stdout)
    assert "completed" in json.dumps(listed)
