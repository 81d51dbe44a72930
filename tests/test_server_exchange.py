"""Hospitals that fail, pause, vanish, come late or leave, on a grid that knows their names."""

import json
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from aecnn import contract
from aecnn.errors import FederationError
from aecnn.model.checkpoint import load_checkpoint
from aecnn.model.weights import pack_weights, unpack_weights
from scripted_hospitals import NAMES, Hospitals, NamedGrid, enrolled, settings
from server import exchange, loop
from server.app import run_and_release
from server.run_folder import RunFolder

pytestmark = pytest.mark.slow  # real models go through the grid, a few seconds each


@pytest.fixture
def hospitals():
    return Hospitals()


@pytest.fixture
def grid(hospitals):
    return NamedGrid(hospitals.app)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    for name in ("AGAIN_AFTER_S", "LATER_AFTER_S", "NODES_INTERVAL_S", "POLL_INTERVAL_S", "LINK_AFTER_S"):
        monkeypatch.setattr(f"server.exchange.{name}", 0.001)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def run(grid, folder):
    """Runs a federation; gives its history."""

    def run(roster=None, on_status=None, expected_nodes=3, **federation):
        run_and_release(
            grid,
            settings(**federation),
            folder,
            expected_nodes=expected_nodes,
            hospitals=roster or enrolled(),
            on_status=on_status,
        )
        return _history(folder)

    return run


def _history(folder):
    return [json.loads(line) for line in folder.history_file.read_text().splitlines()]


def _of(history, kind):
    return [event for event in history if event["event"] == kind]


def test_a_hospital_whose_task_failed_is_asked_again_and_takes_part(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_FAILED, 8, 5, 3, contract.CODE_FAILED]
    history = run(num_rounds=1)
    assert _of(history, "round")[0]["admitted"] == list(NAMES)
    assert hospitals.asked["hospital-2", contract.TRAIN, 1] == 6
    assert hospitals.asked["hospital-1", contract.TRAIN, 1] == 1


def test_a_hospital_whose_own_code_keeps_failing_is_asked_three_times_and_named(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_FAILED] * 9
    (event,) = _of(run(num_rounds=1), "round")
    assert event["refused"] == {"hospital-2": f"code 100: {contract.CODE_TEXT[contract.CODE_FAILED]}"}
    assert hospitals.asked["hospital-2", contract.TRAIN, 1] == 3


def test_a_hospital_that_pauses_is_asked_until_it_answers(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_LATER] * 7
    (event,) = _of(run(num_rounds=1), "round")
    assert event["admitted"] == list(NAMES)


def test_a_hospital_that_withdraws_is_asked_no_more_and_the_run_goes_on(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_WITHDRAWN]
    history = run(num_rounds=2)
    (left,) = _of(history, "left")
    assert (left["hospital"], left["round"]) == ("hospital-2", 1)
    assert [event["admitted"] for event in _of(history, "round")] == [["hospital-1", "hospital-3"]] * 2
    asked_later = [key for key in hospitals.asked if key[0] == "hospital-2" and key[2] > 1]
    assert asked_later == []
    assert sorted(hospitals.files) == ["hospital-1", "hospital-3"]


def test_a_hospital_that_is_revoked_in_the_middle_of_a_round_is_dropped_at_once(grid, run):
    pulls = []
    grid.on_pull = lambda: pulls.append(1)
    history = run(lambda: enrolled(*(NAMES if len(pulls) < 12 else ("hospital-1", "hospital-3")))(), num_rounds=4)
    (left,) = _of(history, "left")
    assert left["reason"] == "its enrolment was revoked"
    assert _of(history, "round")[-1]["admitted"] == ["hospital-1", "hospital-3"]
    assert _of(history, "end")[0]["status"] == "completed"


def test_a_hospital_that_vanished_is_asked_again_when_it_is_back(hospitals, grid, run):
    """Its task is lost with it: without a second message the round would wait for ever."""
    pulls = []

    def on_pull():
        pulls.append(1)
        grid.offline = {"hospital-3"} if 8 < len(pulls) < 40 else set()
        if len(pulls) == 20:
            grid._pending.clear()

    grid.on_pull = on_pull
    history = run(num_rounds=3)
    assert all(event["admitted"] == list(NAMES) for event in _of(history, "round"))
    assert _of(history, "round")[-1]["missing"] == []
    assert len(pulls) > 40


class Roster:
    """Who is enrolled now, as a test changes it while a run goes on."""

    def __init__(self, *names):
        self.names = {*(names or NAMES)}

    def __call__(self):  # noqa: D102
        return enrolled(*sorted(self.names))() if self.names else {}


def _at_pulls(grid, steps):
    """Has each step done when so many pulls were made, in order."""
    pulls = []

    def on_pull():
        pulls.append(1)
        if len(pulls) in steps:
            steps[len(pulls)]()

    grid.on_pull = on_pull


@pytest.mark.parametrize("is_seen_revoked", [True, False])
def test_a_hospital_enrolled_anew_under_a_new_key_in_the_middle_of_a_round_takes_part_again(
    is_seen_revoked, hospitals, grid, run
):
    """Its key is revoked and another accepted while the round waits for a slow hospital."""
    roster = Roster()

    def revoke():
        grid.silent = {"hospital-1", "hospital-3"}  # its task ran when it was cut off
        if is_seen_revoked:
            roster.names.discard("hospital-3")
            grid.offline = {"hospital-3"}

    def enrol_anew():
        roster.names.add("hospital-3")
        grid.register_anew("hospital-3")
        grid.offline, grid.silent = set(), {"hospital-1"}

    _at_pulls(grid, {4: revoke, 12: enrol_anew, 40: lambda: grid.silent.clear()})
    history = run(roster, num_rounds=3)
    assert [(event["hospital"], event["reason"]) for event in _of(history, "left")] == (
        [("hospital-3", exchange.REVOKED)] if is_seen_revoked else []
    )
    assert [event["hospital"] for event in _of(history, "joined")] == (["hospital-3"] if is_seen_revoked else [])
    assert hospitals.asked["hospital-3", contract.JOIN, 0] == 1 + is_seen_revoked
    rounds = _of(history, "round")
    assert rounds[-1]["admitted"] == list(NAMES)
    assert [event["missing"] for event in rounds] == [[]] * 3
    assert _of(history, "delivered")[0]["hospitals"] == list(NAMES)


def test_a_round_waits_for_hospitals_before_an_attempt_counts_as_failed(hospitals, grid, run):
    """All are revoked while the first round is asked; two are back under new keys while it waits."""
    roster, statuses = Roster(), []

    def revoke():
        roster.names.clear()
        grid.offline = set(NAMES)

    def enrol_anew(status):
        statuses.append(status)
        if status["phase"] == "waiting" and not roster.names:
            roster.names |= {"hospital-1", "hospital-2"}
            grid.offline = {"hospital-3"}
            for name in sorted(roster.names):
                grid.register_anew(name)

    _at_pulls(grid, {5: revoke})
    history = run(roster, on_status=enrol_anew, num_rounds=2, max_failed_rounds=1)
    assert "waiting" in [status["phase"] for status in statuses]
    assert _of(history, "attempt") == []
    assert [event["admitted"] for event in _of(history, "round")] == [["hospital-1", "hospital-2"]] * 2
    assert [(event["hospital"], event["round"]) for event in _of(history, "joined")] == [
        ("hospital-1", 1),
        ("hospital-2", 1),
    ]


def test_attempts_without_enough_hospitals_last_the_rounds_timeout_each_and_end_by_name(grid, run):
    roster = Roster()
    _at_pulls(grid, {5: lambda: roster.names.difference_update({"hospital-1", "hospital-2"})})
    begin = time.monotonic()
    with pytest.raises(FederationError, match=r"1 hospital gave .*2 are needed; taking part: hospital-3"):
        run(roster, num_rounds=1, max_failed_rounds=2, round_timeout_s=0.6)
    assert time.monotonic() - begin > 2 * 0.6


def test_a_hospital_that_was_declined_for_its_numbers_is_asked_again_once_it_is_enrolled_with_others(
    hospitals, grid, run
):
    numbers = {"hospital-2": 5}
    _at_pulls(grid, {4: numbers.clear})

    def roster():
        listed = enrolled()()
        return {name: replace(listed[name], num_images=numbers.get(name, listed[name].num_images)) for name in listed}

    history = run(roster, num_rounds=3)
    assert list(history[0]["refused"]) == ["hospital-2"]
    assert [event["hospital"] for event in _of(history, "joined")] == ["hospital-2"]
    assert _of(history, "round")[-1]["admitted"] == list(NAMES)


def test_a_hospital_that_comes_late_joins_and_takes_part_from_the_next_round(grid, run):
    grid.offline = {"hospital-3"}
    grid.on_pull = lambda: grid.offline.clear() if grid._num_pushed > 2 else None
    history = run(num_rounds=3, expected_nodes=2)
    assert list(history[0]["hospitals"]) == ["hospital-1", "hospital-2"]
    (joined,) = _of(history, "joined")
    assert (joined["hospital"], joined["round"], joined["counts"]["num_train_images"]) == ("hospital-3", 2, 30)
    trained = [event["admitted"] for event in _of(history, "round")]
    assert trained == [["hospital-1", "hospital-2"], list(NAMES), list(NAMES)]


def test_a_hospital_that_says_nothing_is_named_and_its_round_does_not_wait_for_ever(grid, run):
    grid.on_pull = lambda: grid.silent.add("hospital-2") if grid._num_pushed > 3 else None
    history = run(num_rounds=1, round_timeout_s=0.5, join_timeout_s=0.5)
    (event,) = _of(history, "round")
    assert event["missing"] == ["hospital-2"]
    assert event["admitted"] == ["hospital-1", "hospital-3"]
    assert _of(history, "delivered")[0]["hospitals"] == ["hospital-1", "hospital-3"]


def test_a_round_without_quorum_is_tried_again_with_those_alone_who_have_not_answered(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_NO_DATA]
    history = run(num_rounds=1, min_hospitals=3)
    (attempt,) = _of(history, "attempt")
    assert "hospital-2: code 102" in attempt["reason"]
    (event,) = _of(history, "round")
    assert (event["attempt"], event["admitted"], event["refused"]) == (2, list(NAMES), {})
    assert hospitals.asked["hospital-1", contract.TRAIN, 1] == 1


def test_a_run_whose_quorum_keeps_failing_ends_as_failed_with_the_reasons_and_can_be_taken_up(hospitals, run, folder):
    hospitals.codes["hospital-2", contract.TRAIN] = [contract.CODE_NO_DATA] * 2
    with pytest.raises(FederationError, match=r"(?s)2 hospital.*3 are needed.*hospital-2: code 102"):
        run(num_rounds=1, min_hospitals=3, max_failed_rounds=2)
    assert folder.ended()["status"] == "failed"
    assert "hospital-2: code 102" in (folder.path / "report.html").read_text()
    assert folder.is_resumable
    history = run(num_rounds=1, min_hospitals=3)
    assert [event["status"] for event in _of(history, "end")] == ["failed", "completed"]
    assert folder.ended()["status"] == "completed"


def test_a_node_may_not_answer_under_the_name_of_another(hospitals, run):
    def pretend(reply):
        reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "hospital": "hospital-1"})

    hospitals.changes["hospital-2", contract.JOIN] = pretend
    history = run(num_rounds=1)
    assert list(history[0]["hospitals"]) == ["hospital-1", "hospital-3"]
    assert "now calls itself 'hospital-1'" in history[0]["refused"]["hospital-2"]


def test_who_is_not_enrolled_or_holds_more_than_it_declared_is_not_let_in(hospitals, run):
    def boast(reply):
        reply.content[contract.COUNTS] = ConfigRecord({**reply.content[contract.COUNTS], "num-train-images": 10**9})

    hospitals.changes["hospital-2", contract.JOIN] = boast
    with pytest.raises(FederationError, match=r"(?s)1 hospital.*hospital-2: holds 1000000005 images, and 25 were"):
        run(enrolled("hospital-1", "hospital-2"), num_rounds=1, expected_nodes=2)
    assert not any(key[0] == "hospital-3" for key in hospitals.asked)


def test_the_sender_of_a_refused_update_is_told_with_the_next_request_and_not_after_it_was_admitted(hospitals, run):
    def claim_too_much(reply):
        reply.content[contract.REPORT] = MetricRecord({**reply.content[contract.REPORT], "num-images": 31})
        del hospitals.changes["hospital-3", contract.TRAIN]

    hospitals.changes["hospital-3", contract.TRAIN] = claim_too_much
    history = run(num_rounds=3)
    assert "claims 31 training images" in _of(history, "round")[0]["refused"]["hospital-3"]
    told = [hospitals.requests["hospital-3", contract.TRAIN, number].last_refusal for number in (1, 2, 3)]
    assert told == [0, contract.REFUSED_COUNTS, 0]
    assert hospitals.requests["hospital-1", contract.TRAIN, 2].last_refusal == 0


def _pretend_to_be_another(reply):
    reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "hospital": "hospital-1"})


def _of_another_round(reply):
    reply.content[contract.ORIGIN] = ConfigRecord({**reply.content[contract.ORIGIN], "round": 7})


def _add_keys(reply):
    reply.content[contract.REPORT] = MetricRecord({f"[/{number}]\x1b[2J": 1 for number in range(5000)})


def _say_it_took(seconds):
    def change(reply):
        reply.content[contract.REPORT] = MetricRecord({**reply.content[contract.REPORT], "seconds": seconds})

    return change


def _change_weights(**changes):
    def change(reply):
        weights = unpack_weights(reply.content[contract.WEIGHTS][contract.PACKED].numpy())
        changed = {
            name: np.full_like(array, changes.get(name.split(".")[-1], array)) for name, array in weights.items()
        }
        reply.content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(pack_weights(changed))})

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_pretend_to_be_another, contract.REFUSED_ORIGIN),
        (_of_another_round, contract.REFUSED_ORIGIN),
        (_add_keys, contract.REFUSED_FORM),
        (_say_it_took(1e300), contract.REFUSED_FORM),
        (_change_weights(running_var=-1.0), contract.REFUSED_VALUES),
        (_change_weights(num_batches_tracked=2**62), contract.REFUSED_VALUES),
        (_change_weights(weight=1e3), contract.REFUSED_NORM),
    ],
)
def test_each_kind_of_refusal_is_told_its_sender_by_its_code_and_short_in_the_history(change, code, hospitals, run):
    hospitals.changes["hospital-3", contract.TRAIN] = change
    first, second = _of(run(num_rounds=2), "round")
    assert list(first["refused"]) == list(second["refused"]) == ["hospital-3"]
    assert len(first["refused"]["hospital-3"]) <= 200
    assert first["refused"]["hospital-3"].isprintable()
    assert hospitals.requests["hospital-3", contract.TRAIN, 2].last_refusal == code


def test_a_code_instead_of_an_update_is_no_refusal_of_one(hospitals, run):
    hospitals.codes["hospital-3", contract.TRAIN] = [contract.CODE_NO_DATA]
    run(num_rounds=2)
    assert hospitals.requests["hospital-3", contract.TRAIN, 2].last_refusal == 0


def test_of_two_hospitals_one_that_goes_far_is_refused_from_the_second_round_on(hospitals, run):
    roster = enrolled("hospital-1", "hospital-2")
    run_is = {"roster": roster, "expected_nodes": 2, "min_hospitals": 1}
    far = _change_weights(weight=1e3)
    hospitals.changes["hospital-2", contract.TRAIN] = lambda reply: (
        far(reply) if reply.content[contract.ORIGIN]["round"] > 1 else None
    )
    rounds = _of(run(num_rounds=3, **run_is), "round")
    assert [event["admitted"] for event in rounds] == [["hospital-1", "hospital-2"], ["hospital-1"], ["hospital-1"]]
    assert "the earlier rounds' median" in rounds[2]["refused"]["hospital-2"]


def test_a_task_that_flower_keeps_losing_is_asked_ten_times_again_and_no_more(hospitals, run):
    hospitals.codes["hospital-2", contract.TRAIN] = [8] * 99
    (event,) = _of(run(num_rounds=1), "round")
    assert event["refused"]["hospital-2"].startswith("code 8")
    assert hospitals.asked["hospital-2", contract.TRAIN, 1] == 11


def test_the_wait_before_a_lost_task_is_asked_for_again_grows(monkeypatch):
    monkeypatch.setattr(exchange, "AGAIN_AFTER_S", 2.0)
    monkeypatch.setattr(exchange, "LATER_AFTER_S", 30.0)
    waits = [exchange._again_after_s(8, num_failures=0, num_losses=number) for number in range(1, 12)]
    assert waits == [2.0, 4.0, 8.0, 16.0, *[30.0] * 6, None]


@pytest.mark.parametrize("is_in_last_attempt", [False, True])
def test_who_is_revoked_after_its_answer_came_is_not_averaged(is_in_last_attempt, hospitals, run, monkeypatch):
    """Between two attempts, or while the updates are looked through."""
    revoked = []
    hospitals.codes["hospital-2", contract.TRAIN] = [] if is_in_last_attempt else [contract.CODE_NO_DATA]
    admit = loop._admit

    def admitting(*arguments):
        admit(*arguments)
        revoked.append("hospital-1")

    monkeypatch.setattr(loop, "_admit", admitting)
    history = run(lambda: enrolled(*(name for name in NAMES if name not in revoked))(), num_rounds=1)
    assert _of(history, "round")[0]["admitted"] == ["hospital-2", "hospital-3"]
    (left,) = _of(history, "left")
    assert (left["hospital"], left["reason"]) == ("hospital-1", "its enrolment was revoked")


@pytest.mark.parametrize("never", NAMES)
def test_a_round_that_is_tried_again_draws_others_in_the_place_of_who_cannot(never, hospitals, run):
    hospitals.codes[never, contract.TRAIN] = [contract.CODE_NO_DATA] * 9
    (event,) = _of(run(num_rounds=1, fraction=0.67), "round")
    assert event["admitted"] == [name for name in NAMES if name != never]
    assert event["attempt"] <= 2


def test_a_superlink_that_restarts_costs_nothing_but_time(grid, run):
    calls = []

    def hiccup():
        calls.append(1)
        if len(calls) in (2, 3, 9, 14):
            raise httpx.ConnectError("restarting")

    grid.on_pull = hiccup
    history = run(num_rounds=2)
    assert all(event["admitted"] == list(NAMES) for event in _of(history, "round"))


def test_a_superlink_that_refuses_ends_the_process_and_not_the_run(grid, run, folder):
    def refuse():
        if grid._num_pushed > 6:
            raise httpx.HTTPStatusError("401", request=httpx.Request("POST", "https://x"), response=httpx.Response(401))

    grid.on_pull = refuse
    with pytest.raises(httpx.HTTPStatusError):
        run(num_rounds=2)
    assert folder.ended() is None
    assert folder.is_resumable


def test_at_the_end_every_hospital_holds_the_model_the_report_and_the_card(hospitals, run, folder):
    statuses = []
    folder.write_text("config.yaml", "name: scripted\ntest_data:\n  root: /home/mary/test-images\n")
    history = run(on_status=statuses.append)
    folder = folder.path
    assert _of(history, "delivered")[0]["hospitals"] == list(NAMES)
    for files in hospitals.files.values():
        assert sorted(files) == sorted(contract.DELIVERED_FILES)
        assert files["global.safetensors"] == (folder / "global.safetensors").read_bytes()
        assert b"Completed" in files["report.html"]
        assert b"root: test-images" in files["report.html"]
        assert b"/home/" not in files["report.html"], "where things lie at the centre is nobody's business"
        assert b"Not for clinical use" in files["model_card.md"]
        assert b"no test set" in files["model_card.md"]
    assert not list(folder.glob(".run.sqlite*"))
    assert not (folder / "spool").exists()
    assert not (folder / "metrics.json").exists()
    assert load_checkpoint(folder / "global.safetensors").metadata.round == 2
    phases = list(dict.fromkeys(status["phase"] for status in statuses))
    assert phases == ["joining", "round", "closing", "delivering", "done"]
    assert statuses[-1]["online"] == list(NAMES)


def test_hospitals_may_keep_their_validation_to_themselves(hospitals, run):
    def keep(reply):
        del reply.content[contract.VALIDATION]

    for name in ("hospital-1", "hospital-2"):
        for kind in (contract.TRAIN, contract.EVALUATE):
            hospitals.changes[name, kind] = keep
    history = run(num_rounds=1, released_round="best")
    (first, last) = _of(history, "validation")
    assert (first["bce"], first["num_images"], list(first["hospitals"])) == (0.4, 5, ["hospital-3"])
    assert last["macro_auroc"] is None
    assert _of(history, "round")[0]["admitted"] == list(NAMES)
    assert np.isclose(first["mse"], 0.02)
