"""The privacy ledger: every patient's spending composes over runs and clients, and nothing refunds it."""

import itertools
import json
import math
import multiprocessing
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import ledger_kills
from aecnn.errors import PrivacyError
from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from client.ledger import EVALUATE, TRAIN, UNPROTECTED, About, BudgetError, Cost, Ledger, Limit, epsilon_of_worst
from client.ledger_store import create_ledger, has_ledger, refuse_network_folder
from client.spending import trusted_ledger

DELTA = 1e-5
ROOMY = Limit(max_epsilon=1e3, delta=DELTA)
CHEAP = Mechanism(noise_multiplier=20.0, sample_rate=1.0, steps=1)  # for the accountants, not for the patients


def _about(round_=1, *, run="a", client="st-mary", request="digest", kind="train"):
    return About(client, (run * 16)[:16], f"run-{run}", kind, round_, request)


def _cost(patients, mechanism=CHEAP, what=TRAIN):
    return Cost(what, [f"patient-{number}" for number in patients], mechanism)


def _spend(ledger, patients, mechanism=CHEAP, *, limit=ROOMY, what=TRAIN, **about):
    reservation = ledger.reserve([_cost(patients, mechanism, what)], _about(**about), limit)
    ledger.settle(reservation, content=f"answer-{reservation.charges}")
    return reservation


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "privacy-ledger"


@pytest.fixture
def ledger(folder):
    return Ledger.create(folder)


def test_the_planned_rounds_cost_what_they_should_and_the_eleventh_is_refused(ledger):
    planned = [3.02, 3.87, 4.56, 5.17, 5.71, 6.22, 6.70, 7.15, 7.58, 7.99]  # facts/privacy.md, PRV
    limit, mechanism = Limit(8.0, DELTA), Mechanism(0.917, 0.05, 40)
    for number, epsilon in enumerate(planned, start=1):
        reserved = _spend(ledger, range(50), mechanism, limit=limit, round_=number)
        assert reserved.epsilon == pytest.approx(epsilon, abs=0.015)
        assert ledger.spent_of_run("a" * 16, delta=DELTA) == reserved.epsilon
    before = ledger.mark()
    with pytest.raises(BudgetError, match=r"from ε 7\.99 to 8\.39 at δ 1e-05 .*max_epsilon is 8: nothing was trained"):
        ledger.reserve([_cost(range(50), mechanism)], _about(11), limit)
    assert (ledger.mark(), len(ledger.charges())) == (before, 10)
    with pytest.raises(BudgetError):  # nor under another name
        ledger.reserve([_cost([7], mechanism)], _about(1, run="b", client="new folder"), limit)
    assert ledger.reserve([_cost([50], mechanism)], _about(1, run="b"), limit).epsilon == pytest.approx(3.02, abs=0.015)


def test_the_patient_who_has_spent_most_is_found_among_overlapping_cohorts(ledger):
    randomness = np.random.default_rng(3)
    done: dict[int, list[Mechanism]] = {}
    for number in range(12):
        patients = randomness.choice(30, size=int(randomness.integers(1, 20)), replace=False).tolist()
        mechanism = Mechanism(float(randomness.choice([15.0, 25.0, 60.0])), 1.0, int(randomness.integers(1, 4)))
        for patient in patients:
            done.setdefault(patient, []).append(mechanism)
        what = TRAIN if number % 3 else EVALUATE
        reserved = _spend(ledger, patients, mechanism, what=what, run="ab"[number % 2], round_=number)
        each = {patient: epsilon_of(own, delta=DELTA) for patient, own in done.items()}  # one patient after another
        assert reserved.epsilon == pytest.approx(max(each[patient] for patient in patients), abs=1e-9)
        assert ledger.spent(delta=DELTA) == pytest.approx(max(each.values()), abs=1e-9)
    assert ledger.num_patients() == len(done)
    parts = [ledger.spent_of_run(run * 16, delta=DELTA) for run in "ab"]
    assert max(parts) < ledger.spent(delta=DELTA) < sum(parts)


def test_one_gaussian_release_to_everybody_costs_its_closed_form(ledger):
    from scipy.optimize import brentq
    from scipy.stats import norm

    def delta_of(epsilon, sigma):  # Balle and Wang, ICML 2018, theorem 8
        return norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)

    _spend(ledger, range(5), Mechanism(2.0, 1.0, 1), what=EVALUATE)
    exact = brentq(lambda epsilon: delta_of(epsilon, 2.0) - DELTA, 0.0, 50.0)
    assert ledger.spent(delta=DELTA) == pytest.approx(exact, abs=0.015)


def test_patients_who_were_in_disjoint_studies_do_not_pay_for_each_other(ledger):
    alone = _spend(ledger, range(10)).epsilon
    assert _spend(ledger, range(10, 20), run="b").epsilon == alone
    assert ledger.spent(delta=DELTA) == alone
    both = _spend(ledger, [9, 10], run="c").epsilon
    assert both == epsilon_of([CHEAP, CHEAP], delta=DELTA) > alone


def test_the_same_request_goes_on_under_its_reservation_and_whatever_differs_is_new(ledger):
    first = ledger.reserve([_cost(range(9))], _about(), ROOMY)
    again = ledger.reserve([_cost(reversed(range(9)))], _about(), ROOMY)
    assert (again.charges, again.is_resumed, first.is_resumed) == (first.charges, True, False)
    assert again.epsilon == first.epsilon
    others = [
        ([_cost(range(8))], _about()),
        ([_cost(range(9), Mechanism(20.0, 1.0, 2))], _about()),
        ([_cost(range(9), what=EVALUATE)], _about()),
        ([_cost(range(9))], _about(2)),
        ([_cost(range(9))], _about(request="other")),
        ([_cost(range(9))], _about(run="b")),
        ([_cost(range(9))], _about(client="a new folder")),
    ]
    numbers = [ledger.reserve(costs, about, ROOMY).charges for costs, about in others]
    assert len(set(numbers) | {first.charges}) == len(others) + 1
    assert [charge.content for charge in ledger.charges()] == [None] * 8
    assert ledger.spent(delta=DELTA, settled_only=True) == 0.0
    assert ledger.spent(delta=DELTA) == epsilon_of([CHEAP] * 7 + [Mechanism(20.0, 1.0, 2)], delta=DELTA)


def test_a_reservation_pays_for_one_answer_and_no_other(ledger):
    reserved = _spend(ledger, range(3))
    with pytest.raises(PrivacyError, match="has paid for another answer"):
        ledger.settle(reserved, content="a second one")
    renewed = ledger.reserve([_cost(range(3))], _about(), ROOMY)
    assert not renewed.is_resumed
    assert renewed.epsilon > reserved.epsilon
    assert ledger.charges()[0].content == f"answer-{reserved.charges}"


def test_an_answer_kept_before_a_crash_is_settled_when_it_goes_out_and_an_unpaid_one_does_not(ledger):
    ledger.reserve([_cost(range(3)), _cost(range(3, 6), what=EVALUATE)], _about(), ROOMY)
    ledger.settle_again(_about(), content="kept")
    assert [charge.content for charge in ledger.charges()] == ["kept", "kept"]
    mark = ledger.mark()
    ledger.settle_again(_about(), content="kept")
    assert ledger.mark() == mark
    with pytest.raises(PrivacyError, match="was not paid for"):
        ledger.settle_again(_about(), content="another")
    with pytest.raises(PrivacyError, match="was not paid for"):
        ledger.settle_again(_about(2), content="kept")


def test_a_lower_cap_also_stops_what_was_reserved_before(ledger):
    ledger.reserve([_cost(range(3), Mechanism(1.0, 1.0, 1))], _about(), ROOMY)
    with pytest.raises(BudgetError):
        ledger.reserve([_cost(range(3), Mechanism(1.0, 1.0, 1))], _about(), Limit(1.0, DELTA))


def test_too_little_noise_is_beyond_every_cap(ledger):
    with pytest.raises(BudgetError, match="to inf"):
        ledger.reserve([_cost(range(3), Mechanism(1e-6, 0.01, 1))], _about(), Limit(1e9, DELTA))


def test_answers_without_noise_are_noted_once_and_no_cap_counts_them(ledger):
    told_of = [Cost(UNPROTECTED, [f"patient-{n}"], Mechanism(0.0, 1.0, steps)) for n, steps in ((1, 7), (2, 0))]
    for _ in range(2):
        ledger.record_unprotected(told_of, _about(), content="answer")
    assert [charge.mechanism.steps for charge in ledger.charges()] == [7, 0]
    for charge in ledger.charges():
        assert (charge.is_protected, charge.mechanism.noise_multiplier, charge.content) == (False, 0.0, "answer")
    assert ledger.spent(delta=DELTA) == 0.0
    assert _spend(ledger, [1], round_=2).epsilon == epsilon_of([CHEAP], delta=DELTA)


def test_patients_are_known_by_a_secret_and_by_nothing_else(ledger, folder):
    _spend(ledger, range(4))
    files = sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm")))
    assert files == ["ledger.sqlite", "secret"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"patient-" not in path.read_bytes()
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        keys = {row[0] for row in connection.execute("SELECT patient FROM members")}
    import hmac

    assert hmac.digest((folder / "secret").read_bytes(), b"patient-3", "sha256") in keys


def test_charges_cannot_be_deleted(ledger, folder):
    _spend(ledger, range(4))
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        for table in ("charges", "members"):
            with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608


def test_files_that_are_missing_open_or_of_another_ledger_are_refused(ledger, folder, tmp_path):
    _spend(ledger, range(4))
    secret = (folder / "secret").read_bytes()
    (folder / "secret").chmod(0o640)
    with pytest.raises(PrivacyError, match=r"open to other accounts \(mode 0640\): chmod 600"):
        Ledger.open(folder)
    (folder / "secret").unlink()
    with pytest.raises(PrivacyError, match=r"secret cannot be read .*nobody knows what was spent"):
        Ledger.open(folder)
    other = tmp_path / "other"
    create_ledger(other)
    shutil.copy2(other / "secret", folder / "secret")
    with pytest.raises(PrivacyError, match="everybody's budget would begin anew"):
        Ledger.open(folder)
    (folder / "secret").write_bytes(secret)
    Ledger.open(folder)
    (folder / "ledger.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(PrivacyError, match="cannot be read or written"):
        Ledger.open(folder)
    (folder / "ledger.sqlite").unlink()
    assert has_ledger(folder)
    with pytest.raises(PrivacyError, match=r"ledger\.sqlite cannot be read"):
        Ledger.open(folder)
    with pytest.raises(PrivacyError, match="not empty"):
        Ledger.create(folder)


def test_a_ledger_of_a_later_version_is_refused(ledger, folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(PrivacyError, match="version 2"):
        Ledger.open(folder)


def test_a_restored_backup_or_another_ledger_is_known_by_who_saw_more(ledger, folder, tmp_path):
    _spend(ledger, range(4))
    backup = shutil.copytree(folder, tmp_path / "backup")
    _spend(ledger, range(4), round_=2)
    seen = ledger.mark()
    assert trusted_ledger(folder, seen).mark() == trusted_ledger(folder, None).mark() == seen
    shutil.rmtree(folder)
    with pytest.raises(PrivacyError, match=r"there is no privacy ledger in .* --adopt-ledger"):
        trusted_ledger(folder, seen)
    shutil.copytree(backup, folder)
    with pytest.raises(PrivacyError, match=r"an older copy .*a backup refunds nothing"):
        trusted_ledger(folder, seen)
    restored = trusted_ledger(folder, None)  # who saw nothing of it cannot know, and takes it on to as many changes
    for round_ in itertools.count(3):
        _spend(restored, range(4), round_=round_)
        if restored.mark().sequence >= seen.sequence:
            break
    assert restored.mark().sequence == seen.sequence
    with pytest.raises(PrivacyError, match="an older copy"):
        trusted_ledger(folder, seen)
    shutil.rmtree(folder)
    create_ledger(folder)
    with pytest.raises(PrivacyError, match="holds another ledger"):
        trusted_ledger(folder, seen)
    with pytest.raises(PrivacyError, match="ledger_folder is null"):
        trusted_ledger(None, None)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "9p", "lustre", "ceph", "fuse.sshfs", "fuse.glusterfs"])
def test_a_folder_on_a_network_file_system_is_refused(tmp_path, kind):
    place = tmp_path.resolve()
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {str(place).replace(' ', chr(92) + '040')} {kind} rw 0 0\n"
    with pytest.raises(PrivacyError, match=rf"network file system \({kind}\).*disk of this machine"):
        refuse_network_folder(place / "a" / "ledger", mounts=mounts)
    refuse_network_folder(place.parent / "elsewhere", mounts=mounts)
    below = mounts + f"/dev/sdb1 {place}/a ext4 rw 0 0\n"
    refuse_network_folder(place / "a" / "ledger", mounts=below)
    over = mounts + f"/dev/sdb1 {place} xfs rw 0 0\n"  # what is mounted last hides what was there before
    refuse_network_folder(place / "a" / "ledger", mounts=over)


def test_a_mount_whose_name_has_a_space_is_found(tmp_path):
    mounts = f"server:/x {tmp_path.resolve()}/my\\040share nfs rw 0 0\n"
    with pytest.raises(PrivacyError, match="network"):
        refuse_network_folder(tmp_path.resolve() / "my share" / "ledger", mounts=mounts)


def _reserve_in_turn(folder, client, barrier):
    barrier.wait()
    ledger = Ledger.open(Path(folder))
    for number in range(5):
        reserved = ledger.reserve([_cost(range(5))], _about(number, client=client), ROOMY)
        ledger.settle(reserved, content=f"{client}-{number}")


def test_two_processes_that_reserve_at_once_both_count(ledger, folder):
    for steps in range(1, 11):  # so that the children find them in memory
        epsilon_of([Mechanism(20.0, 1.0, steps)], delta=DELTA)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    clients = [context.Process(target=_reserve_in_turn, args=(str(folder), name, barrier)) for name in ("one", "two")]
    for process in clients:
        process.start()
    for process in clients:
        process.join(120)
    assert [process.exitcode for process in clients] == [0, 0]
    charges = ledger.charges()
    assert sorted(charge.content for charge in charges) == sorted(f"{c}-{n}" for c in ("one", "two") for n in range(5))
    assert ledger.spent(delta=DELTA) == epsilon_of([CHEAP] * 10, delta=DELTA)
    totals = [charge.epsilon for charge in charges]  # each saw all that came before it
    assert totals == [epsilon_of([CHEAP] * number, delta=DELTA) for number in range(1, 11)]


def test_at_most_one_of_two_that_fit_alone_passes(ledger):
    limit = Limit(epsilon_of([CHEAP], delta=DELTA) + 1e-6, DELTA)
    ledger.reserve([_cost(range(5))], _about(client="one"), limit)
    with pytest.raises(BudgetError):
        ledger.reserve([_cost(range(5))], _about(client="two"), limit)


@pytest.mark.slow
def test_however_often_a_client_is_killed_everything_it_gave_is_in_the_ledger(tmp_path):
    done = subprocess.run(
        [sys.executable, ledger_kills.__file__, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)
    assert len(states) >= 50
    for state in states:
        assert len(set(state["given"])) == len(state["given"])
        assert set(state["given"]) <= set(state["paid"])
        assert len(set(state["paid"])) == len(state["paid"])
        assert state["steps"] >= len(state["given"])
    for before, after in itertools.pairwise(states):
        assert before["charges"] <= after["charges"]
        assert set(before["paid"]) <= set(after["paid"])
    assert len(states[-1]["given"]) > 10  # it came to something between the kills
    assert any(state["charges"] > len(state["given"]) for state in states)  # and some fell into the middle of a round


def test_many_patients_and_charges_are_counted_in_seconds(ledger):
    patients = range(25_000)
    mechanism = Mechanism(40.0, 1.0, 1)
    ledger.reserve([_cost(patients, mechanism)], _about(), ROOMY)
    ledger.reserve([_cost(range(20_000), mechanism)], _about(run="b"), ROOMY)
    with ledger._store.changing() as connection:  # a thousand more of the same, without the accountant
        columns = "cohort, what, client, run_id, run, kind, request, noise_multiplier, sample_rate, steps, reserved_at"
        connection.executemany(
            f"INSERT INTO charges (round, {columns}) SELECT ?, {columns} FROM charges WHERE id = ?",  # noqa: S608
            [(number, 1 + number % 2) for number in range(2, 1000)],
        )
    begin = time.monotonic()
    reserved = ledger.reserve([_cost(patients, mechanism)], _about(1000), ROOMY)
    assert time.monotonic() - begin < 30.0
    assert reserved.epsilon == epsilon_of([Mechanism(40.0, 1.0, 1001)], delta=DELTA)


def test_of_many_patterns_only_those_that_may_be_the_worst_are_composed():
    patterns = [[Mechanism(20.0, 1.0, steps)] for steps in range(1, 200)]
    assert epsilon_of_worst(patterns, delta=DELTA) == epsilon_of([Mechanism(20.0, 1.0, 199)], delta=DELTA)
    assert epsilon_of_worst([], delta=DELTA) == epsilon_of_worst([[]], delta=DELTA) == 0.0
