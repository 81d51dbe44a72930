"""The real federation on one machine: the commands of the README, real SuperLink, SuperNodes, TLS and SQLite."""

import json
import os
import random
import signal
import sys
import time

import pytest

from aecnn.model.checkpoint import load_checkpoint
from deployed_federation import HOSPITALS, children_of, command, deploy, kill
from federation_in_process import same_weights, small_config
from server.run_folder import RunFolder
from simulations.runner import Prepared, run_prepared

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def _simulated_weights(config, folder):
    """What the same hospitals give in a simulation that was prepared in `folder`."""
    run_prepared(Prepared(config, RunFolder(folder), num_hospitals=len(HOSPITALS)), "inprocess")
    return load_checkpoint(folder / "global.safetensors").weights


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
    assert same_weights(released.weights, _simulated_weights(config, tmp_path / "simulated"))
    history = deployed.history()
    assert [event["round"] for event in history if event["event"] == "round"] == [1, 2, 3]
    assert next(event for event in history if event["event"] == "end")["status"] == "completed"
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


def test_whatever_is_killed_and_whenever_the_run_ends_with_the_right_weights(phantom_64px, tmp_path):
    """Kills (−9) each process in turn, at a random moment of the round it is in; nobody helps but the supervisors."""
    config = small_config(
        phantom_64px,
        federation={"num_rounds": 6, "min_hospitals": 3, "round_timeout_s": 600},
        training={"local_steps": 12},
    )
    deployed = deploy(tmp_path, config)
    seed = time.time_ns()
    sys.stdout.write(f"the moments follow from seed {seed}\n")  # shown by pytest when the test fails
    moments = random.Random(seed)
    try:
        deployed.start("centre", *HOSPITALS)
        victims = [
            ("hospital-1", "client.worker"),
            ("centre", "server.coordinator"),
            ("hospital-2", "flower-supernode"),
            ("centre", "flower-superlink"),
        ]
        for number, (owner, holding) in enumerate(victims, start=1):
            done = number
            deployed.wait_for(
                lambda done=done: sum(e["event"] == "round" for e in deployed.history()) >= done, f"round {done}", 300
            )
            time.sleep(moments.uniform(0.0, 6.0))
            assert deployed.processes["centre"].poll() is None, "the run ended before everything was killed"
            kill(deployed, owner, holding=holding)
        deployed.wait_for(lambda: sum(e["event"] == "round" for e in deployed.history()) >= 5, "round 5", 300)
        _kill_the_whole_centre(deployed)
        deployed.start("centre")
        assert deployed.wait_for_end(400) == 0, deployed.logs()
    finally:
        deployed.stop()
    released = load_checkpoint(deployed.run_folder() / "global.safetensors")
    assert same_weights(released.weights, _simulated_weights(config, tmp_path / "simulated"))
    assert [event["round"] for event in deployed.history() if event["event"] == "round"] == list(range(1, 7))


def _kill_the_whole_centre(deployed) -> None:
    """Kills the supervisor alone: its children must go with it, or a second start would meet their ports."""
    supervisor = deployed.processes["centre"]
    children = children_of(supervisor.pid)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    deployed.wait_for(lambda: not any(_is_running(pid) for pid in children), "the centre's processes to end", 30)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
