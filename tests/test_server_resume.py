"""A run that is interrupted anywhere goes on, and ends with the same weights as one that was not, bit for bit."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from aecnn.model.checkpoint import load_checkpoint
from federation_in_process import same_weights, small_config
from scripted_hospitals import Hospitals, NamedGrid, enrolled, settings
from server.app import run_and_release
from server.run_folder import RunFolder
from server.store import RoundStore, StoreError
from simulations.grid import InProcessGrid
from simulations.runner import prepare_run, run_prepared

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for a process that ends in the middle of a call."""


class DyingGrid(NamedGrid):
    """A grid on which the process dies at the n-th call."""

    def __init__(self, app, *, dies_at):
        super().__init__(app)
        self.calls_left = dies_at

    def push_messages(self, messages):
        """Sends, or dies."""
        self._count()
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        """Fetches, or dies before or after it."""
        self._count()
        replies = super().pull_messages(message_ids)
        self._count()  # a reply that was fetched and not used is lost
        return replies

    def _count(self):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise Killed


def _history(folder):
    return [json.loads(line) for line in folder.history_file.read_text().splitlines()]


def _run(grid, folder, *, is_simulated=False, **federation):
    run_and_release(
        grid, settings(**federation), folder, expected_nodes=3, hospitals=None if is_simulated else enrolled()
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = RunFolder.create(tmp_path_factory.mktemp("uninterrupted") / "run")
    _run(NamedGrid(Hospitals().app), folder)
    return folder


def _same_but_for_the_interruption(one, two):
    """The histories say the same of each round; times differ."""

    def timeless(value):
        if not isinstance(value, dict):
            return value
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "started_at", "at", "run_id")}

    def told(folder):
        return [timeless(event) for event in _history(folder) if event["event"] not in ("resume", "end", "answer")]

    assert told(one) == told(two)
    assert same_weights(load_checkpoint(one.checkpoint_file).weights, load_checkpoint(two.checkpoint_file).weights)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_a_run_that_dies_again_and_again_ends_as_one_that_never_did(strategy, tmp_path):
    """Dies at a random call, and four times more at random ones after it was taken up."""
    federation = {"num_rounds": 2, "strategy": {"name": strategy}, "released_round": "best"}
    folder = RunFolder.create(tmp_path / "run")
    hospitals, places, deaths = Hospitals(), random.Random(strategy), 0
    while True:
        try:
            dies_at = places.randint(4, 12) if deaths < 5 else 10**6
            _run(DyingGrid(hospitals.app, dies_at=dies_at), folder, **federation)
            break
        except Killed:
            deaths += 1
            assert folder.is_resumable
    assert deaths == 5
    reference = RunFolder.create(tmp_path / "reference")
    _run(NamedGrid(Hospitals().app), reference, **federation)
    _same_but_for_the_interruption(folder, reference)
    assert not folder.is_resumable


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_dying_right_before_or_after_each_step_is_kept_loses_and_repeats_nothing(
    is_before, tmp_path, uninterrupted, monkeypatch
):
    commit, left = RoundStore.commit, ["joining", "rounds", "released", "delivering"]

    def dying(store, progress, **arrays):
        dies = progress.phase in left
        if dies:
            left.remove(progress.phase)
        if not (dies and is_before):
            commit(store, progress, **arrays)
        if dies:
            raise Killed

    folder, hospitals = RunFolder.create(tmp_path / "run"), Hospitals()
    monkeypatch.setattr(RoundStore, "commit", dying)
    for _ in range(4):
        with pytest.raises(Killed):
            _run(NamedGrid(hospitals.app), folder)
    _run(NamedGrid(hospitals.app), folder)
    assert left == []
    _same_but_for_the_interruption(folder, uninterrupted)
    assert [event["event"] for event in _history(folder)].count("end") == 1
    assert folder.ended()["status"] == "completed"


@pytest.mark.parametrize(
    "change", ["ALTER TABLE progress DROP COLUMN norms", "UPDATE progress SET members = '{\"a\": {}}'"]
)
def test_a_run_that_another_version_began_is_refused_with_what_to_do_and_left_as_it_is(change, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(Killed):
        _run(DyingGrid(Hospitals().app, dies_at=9), folder)
    with contextlib.closing(sqlite3.connect(folder.store_file)) as database, database:
        database.execute(change)
    history = folder.history_file.read_bytes()
    with pytest.raises(StoreError, match=r"another version of this software.*--new.*history"):
        _run(NamedGrid(Hospitals().app), folder)
    assert folder.history_file.read_bytes() == history


def test_a_damaged_store_is_told(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.store_file.write_bytes(b"no database, and long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        _run(NamedGrid(Hospitals().app), folder)


def test_simulated_hospitals_are_recognised_by_what_they_answer_after_an_interruption(tmp_path, uninterrupted):
    folder, hospitals = RunFolder.create(tmp_path / "run"), Hospitals()

    class Dying(InProcessGrid):
        def pull_messages(self, message_ids):
            if self._num_pushed > 6:
                raise Killed
            return super().pull_messages(message_ids)

    with pytest.raises(Killed):
        _run(Dying(hospitals.app, num_nodes=3, run_config={}), folder, is_simulated=True)
    _run(InProcessGrid(hospitals.app, num_nodes=3, run_config={}), folder, is_simulated=True)
    (resumed,) = [event for event in _history(folder) if event["event"] == "resume"]
    assert (resumed["round"], resumed["hospitals"]) == (1, ["hospital-1", "hospital-2", "hospital-3"])
    reference = load_checkpoint(uninterrupted.checkpoint_file).weights
    assert same_weights(load_checkpoint(folder.checkpoint_file).weights, reference)


def test_kill_9_in_the_middle_of_a_round_of_real_training_changes_no_bit(phantom_64px, tmp_path):
    config = small_config(phantom_64px)
    reference = prepare_run(config, tmp_path / "reference")
    run_prepared(reference, "inprocess")
    killed = prepare_run(config, tmp_path / "killed")
    program = (
        "import sys; from pathlib import Path; from flwr.app import Context, RecordDict\n"
        "from client.app import app as client; from server.app import app as server\n"
        "from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid\n"
        "folder = Path(sys.argv[1])\n"
        "config = {'config': str(folder / 'config.yaml'), 'run-folder': str(folder),"
        " 'hospitals': str(folder / 'hospitals')}\n"
        "grid = InProcessGrid(client, num_nodes=3, run_config=config)\n"
        "server(grid, Context(run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(),"
        " run_config=config))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(killed.folder.path)], stderr=subprocess.DEVNULL)
    _wait_for_answer_of_round_2(killed.folder, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert killed.folder.is_resumable
    assert killed.folder.ended() is None
    run_prepared(killed, "inprocess")
    _same_but_for_the_interruption(killed.folder, reference.folder)
    assert (killed.folder.path / "metrics.json").read_bytes() == (reference.folder.path / "metrics.json").read_bytes()


def _wait_for_answer_of_round_2(folder, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = folder.history_file.read_text() if folder.history_file.exists() else ""
        if '"event": "answer", "round": 2' in text:
            return
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    raise AssertionError("no answer of round 2 came")
