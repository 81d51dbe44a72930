"""Kills (−9) of every process of a real federation, in every phase of a run: it ends with the right weights."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

from aecnn.model.checkpoint import load_checkpoint
from client.paths import SitePaths
from client.status import audit_problems
from deployed_federation import HOSPITALS, Deployed, children_of, deploy, kill, simulated_weights
from federation_in_process import same_weights, small_config

pytestmark = [pytest.mark.flower, pytest.mark.slow]

NUM_ROUNDS = 6
OF_A_HOSPITAL = ("client.worker", "flower-supernode")


def test_whatever_is_killed_and_whenever_the_run_ends_with_the_right_weights(phantom_64px, tmp_path):
    """In each phase something is killed, in the rounds at a random moment; nobody helps but the supervisors."""
    config = small_config(
        phantom_64px,
        federation={"num_rounds": NUM_ROUNDS, "min_hospitals": 3, "round_timeout_s": 600},
        training={"local_steps": 12},
    )
    deployed = deploy(tmp_path, config)
    seed = time.time_ns()
    sys.stdout.write(f"the moments follow from seed {seed}\n")  # shown by pytest when the test fails
    try:
        deployed.start("centre", "hospital-1", "hospital-2")
        _kill_while_hospitals_join(deployed)
        _kill_in_the_rounds(deployed, random.Random(seed))
        _kill_at_the_end(deployed)
        assert deployed.wait_for_end(400) == 0, deployed.logs()
    finally:
        deployed.stop()
    released = load_checkpoint(deployed.run_folder() / "global.safetensors")
    assert same_weights(released.weights, simulated_weights(config, deployed))
    assert [event["round"] for event in deployed.rounds()] == list(range(1, NUM_ROUNDS + 1))
    assert [event["hospitals"] for event in deployed.history() if event["event"] == "delivered"] == [list(HOSPITALS)]
    for name, folder in deployed.hospitals.items():
        (delivered,) = folder.glob("models/*/global.safetensors")
        assert same_weights(load_checkpoint(delivered).weights, released.weights), name
        assert audit_problems(SitePaths(folder)) == [], name


def _kill_while_hospitals_join(deployed: Deployed) -> None:
    """The coordinator, and all of a hospital, after it told its name and before the last hospital is there."""
    deployed.wait_for(lambda: "hospital-1" in deployed.status()["answered"], "hospital-1 to join", 240)
    kill(deployed, "centre", "server.coordinator")
    kill(deployed, "hospital-1", *OF_A_HOSPITAL)
    deployed.start("hospital-3")


def _kill_in_the_rounds(deployed: Deployed, moments: random.Random) -> None:
    """One process after each finished round, then all of a hospital, and all of the centre before it is back."""
    victims = [
        ("hospital-1", "client.worker"),
        ("centre", "server.coordinator"),
        ("hospital-2", "flower-supernode"),
        ("centre", "flower-superlink"),
    ]
    for done, (owner, word) in enumerate(victims, start=1):
        deployed.wait_for(_are_done(deployed, done), f"round {done}", 300)
        time.sleep(moments.uniform(0.0, 6.0))
        assert deployed.processes["centre"].poll() is None, "the run ended before everything was killed"
        kill(deployed, owner, word)
    deployed.wait_for(_are_done(deployed, NUM_ROUNDS - 1), "the last round but one", 300)
    kill(deployed, "hospital-3", *OF_A_HOSPITAL)
    _kill_the_whole_centre(deployed)
    deployed.start("centre")


def _kill_at_the_end(deployed: Deployed) -> None:
    """The coordinator and one hospital or the other, while the last model is judged and while it is delivered."""
    for phase, hospital in (("closing", "hospital-2"), ("delivering", "hospital-1")):
        deployed.wait_for_phase(phase)
        kill(deployed, "centre", "server.coordinator")
        kill(deployed, hospital, *OF_A_HOSPITAL)


def _are_done(deployed: Deployed, number: int) -> Callable[[], bool]:
    return lambda: len(deployed.rounds()) >= number


def _kill_the_whole_centre(deployed: Deployed) -> None:
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
