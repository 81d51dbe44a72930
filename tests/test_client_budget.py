"""What an answer costs is reserved before and settled after it, nothing refunds it, and ``aecnn-client`` tells it."""

import functools
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.config import ModelConfig, load_config
from aecnn.contract import RoundReport
from aecnn.errors import ConfigError, PrivacyError
from aecnn.evaluation.noised import NOISED_BINS
from aecnn.findings import NUM_FINDINGS
from aecnn.privacy_config import EvaluationPrivacyConfig, PrivacyConfig
from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from client import app as app_module
from client.audit_log import AuditLog, last_with
from client.deployment import deployment_of
from client.desk import Desk
from client.guard import guard_egress
from client.inventory import inventory_of
from client.ledger import ADJACENCY, Ledger
from client.ledger_store import create_ledger
from client.policy import refuse_against_policy
from client.privacy import noised_evaluation, private_report, promise_at
from client.progress import Progress
from client.setup import default_ledger_folder, make_folder
from client.site import SiteConfig, hospital_of, read_training_data
from client.spending import LINE_KEY, ledger_seen
from client.state import SiteState
from client.wire import request_of, to_array_record
from hospital_in_folder import aecnn_client, federation_file
from hospital_in_process import PLAN, RUN_ID, centre_message, hospital_folder, initial_weights, write_site

PRIVACY = PrivacyConfig(noise_multiplier=0.917, sample_rate=0.05, total_steps=400)
PLAN_WITH_PRIVACY = PLAN.model_copy(
    update={
        "model": ModelConfig(backbone="resnet18", normalisation="group"),
        "training": PLAN.training.model_copy(update={"local_steps": 40, "privacy": PRIVACY}),
    }
)
ROUND = Mechanism(0.917, 0.05, 40)
DELTA = 1e-5


@pytest.fixture(scope="module")
def weights():
    return initial_weights(PLAN_WITH_PRIVACY)


@pytest.fixture
def ledger_folder(tmp_path):
    create_ledger(tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def site(phantom_64px, tmp_path, ledger_folder):
    return hospital_folder(tmp_path / "st-mary", phantom_64px, privacy=_privacy(ledger_folder))


@pytest.fixture
def train(weights):
    return functools.partial(centre_message, contract.TRAIN, weights=weights, plan=PLAN_WITH_PRIVACY)


def _privacy(ledger_folder, **more):
    return {"patients": 1000, "ledger_folder": None if ledger_folder is None else str(ledger_folder)} | more


def _app(calls, *, at_work=lambda: None):
    """An app under our guard and policy that answers as a private training does, and trains nothing."""
    app = ClientApp(mods=[guard_egress, refuse_against_policy])

    def promised(message, context):
        request, hospital = request_of(message), hospital_of(context.node_config, context.run_config)
        data = read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)
        return request, promise_at(hospital, data, request)

    def histogram(request, kind):
        if noised_evaluation(request, kind) is None:
            return {}
        counts = np.zeros((NUM_FINDINGS, 2, NOISED_BINS), np.int64)
        return {contract.HISTOGRAMS: to_array_record({contract.NOISED_COUNTS: counts})}

    @app.train()
    def train(message, context):
        request, promise = promised(message, context)
        calls.append(request.round)
        at_work()
        if promise is None:
            report = RoundReport(num_images=9, num_steps=2, images_seen=8, seconds=0.5)
        else:
            report = private_report(promise, epsilon=deployment_of(context.node_config).epsilon)
        content = RecordDict({contract.REPORT: MetricRecord(report.to_wire())})
        content[contract.WEIGHTS] = message.content[contract.WEIGHTS]
        if promise is not None:
            for name, record in histogram(request, contract.TRAIN).items():
                content[name] = record
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        request, _ = promised(message, context)
        calls.append("evaluate")
        content = RecordDict()
        for name, record in histogram(request, contract.EVALUATE).items():
            content[name] = record
        return Message(content, reply_to=message)

    return app


def _code(reply):
    return reply.error.code if reply.has_error() else 0


def _lines(site):
    return [json.loads(line) for line in site.audit_log.read_text().splitlines()]


def test_rounds_are_answered_until_one_would_pass_the_cap(site, train, ledger_folder, phantom_64px):
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder, max_epsilon=4.0))
    calls = []
    desk = Desk(site, _app(calls))
    for number, epsilon in ((1, 3.02), (2, 3.87)):
        reply = desk.answer(train(round=number))
        report = RoundReport.from_wire(dict(reply.content[contract.REPORT]))
        assert report.epsilon == pytest.approx(epsilon, abs=0.015)
        assert report.epsilon == Ledger.open(ledger_folder).spent(delta=report.delta)
        mark = Ledger.open(ledger_folder).mark()
        assert _lines(site)[-1][LINE_KEY] == {"id": mark.ledger, "sequence": mark.sequence, "mark": mark.mark}
        assert SiteState(site.database).ledger_seen() == mark
    refused = desk.answer(train(round=3))
    assert (_code(refused), refused.error.reason) == (107, "the hospital's privacy budget does not allow another round")
    assert calls == [1, 2]
    assert "from ε 3.87 to 4.56" in _lines(site)[-1]["decision"]
    assert Ledger.open(ledger_folder).mark() == mark
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder, max_epsilon=5.0))  # the operator allows more
    assert _code(Desk(site, _app(calls)).answer(train(round=3))) == 0
    assert _code(desk.answer(train(round=2))) == 0  # and what was answered under the lower cap goes out again
    assert calls == [1, 2, 3]


def test_the_installed_app_goes_on_under_the_reservation_of_a_training_that_a_crash_ended(
    site, train, ledger_folder, monkeypatch
):
    monkeypatch.setattr(app_module, "LocalCheckpoint", functools.partial(app_module.LocalCheckpoint, interval_s=0.0))
    training = PLAN_WITH_PRIVACY.training.model_copy(update={"local_steps": 3})
    plan, steps = PLAN_WITH_PRIVACY.model_copy(update={"training": training}), []

    def tell_step(self, done, total):
        steps.append(done)
        if steps == [1, 2]:
            raise Killed

    monkeypatch.setattr(Progress, "tell_step", tell_step)
    with pytest.raises(Killed):
        Desk(site, app_module.app).answer(train(plan=plan))
    (reserved,) = Ledger.open(ledger_folder).charges()
    reply = Desk(site, app_module.app).answer(train(plan=plan))
    (settled,) = Ledger.open(ledger_folder).charges()
    assert steps == [1, 2, 3]
    assert (reserved.content, settled.mechanism) == (None, Mechanism(0.917, 0.05, 3))
    assert set(reply.content) == {contract.ORIGIN, contract.AUDIT, contract.REPORT, contract.WEIGHTS}
    assert reply.content[contract.REPORT]["epsilon"] == settled.run_epsilon == settled.epsilon


def test_every_training_patient_pays_and_no_one_else(site, train, ledger_folder):
    Desk(site, _app([])).answer(train())
    hospital = hospital_of({"site": str(site.site)}, {})
    data = read_training_data(hospital, PLAN.images.size_px, 0.25)
    (charge,) = Ledger.open(ledger_folder).charges()
    patients = data.loaded.manifest.table["patient"].iloc[data.train_rows]
    assert Ledger.open(ledger_folder).num_patients() == patients.nunique()
    assert (charge.mechanism, charge.what, charge.about.run_id) == (ROUND, "train", RUN_ID)


def test_a_repeated_request_costs_nothing_and_a_new_folder_with_the_same_patients_starts_where_it_was(
    site, train, ledger_folder, phantom_64px, tmp_path
):
    calls = []
    first = Desk(site, _app(calls)).answer(train())
    mark = Ledger.open(ledger_folder).mark()
    again = Desk(site, _app(calls)).answer(train(message_id="m-2"))
    assert inventory_of(again.content) == inventory_of(first.content)
    assert (calls, Ledger.open(ledger_folder).mark()) == ([1], mark)
    other = hospital_folder(tmp_path / "created-anew", phantom_64px, privacy=_privacy(ledger_folder))
    reply = Desk(other, _app(calls)).answer(train())  # the same request to a client without memory is another answer
    assert calls == [1, 1]
    assert RoundReport.from_wire(dict(reply.content[contract.REPORT])).epsilon == pytest.approx(3.87, abs=0.015)


def test_an_overlapping_dataset_in_another_run_does_not_begin_anew(site, train, ledger_folder, phantom_64px, tmp_path):
    Desk(site, _app([])).answer(train())
    patients = hospital_of({"site": str(site.site)}, {}).manifest.patients
    other = hospital_folder(tmp_path / "other", phantom_64px, privacy=_privacy(ledger_folder))
    (other.folder / "few.txt").write_text("\n".join(patients[: len(patients) // 2]))
    other.site.write_text(other.site.read_text().replace("data:\n", "data:\n  patients_file: few.txt\n"))
    reply = Desk(other, _app([])).answer(train(run_id="b" * 16))
    report = RoundReport.from_wire(dict(reply.content[contract.REPORT]))
    assert report.epsilon == pytest.approx(3.02, abs=0.015)  # of its own run
    assert Ledger.open(ledger_folder).spent(delta=DELTA) == pytest.approx(3.87, abs=0.015)  # of who is in both


class Killed(BaseException):
    """The process ends here."""


def _killed(*_, **__):
    raise Killed


@pytest.mark.parametrize("point", ["training", "_replies.keep", "_spending.settle", "_audit.append"])
def test_wherever_it_crashes_the_round_is_paid_once_and_answered(point, site, train, ledger_folder, monkeypatch):
    calls = []
    with monkeypatch.context() as patch:
        desk = Desk(site, _app(calls, at_work=_killed if point == "training" else lambda: None))
        if point != "training":
            owner, method = point.split(".")
            act = getattr(getattr(desk, owner), method)
            killed_at = 2 if method == "append" else 1
            counted = []

            def until_killed(*arguments, **more):
                counted.append(1)
                return _killed() if len(counted) == killed_at else act(*arguments, **more)

            patch.setattr(getattr(desk, owner), method, until_killed)
        with pytest.raises(Killed):
            desk.answer(train())
    assert Ledger.open(ledger_folder).spent(delta=DELTA) == pytest.approx(3.02, abs=0.015)
    assert _code(Desk(site, _app(calls)).answer(train())) == 0
    (charge,) = Ledger.open(ledger_folder).charges()
    assert charge.content is not None
    assert calls == ([1, 1] if point in ("training", "_replies.keep") else [1])


def test_an_answer_that_cannot_be_settled_is_kept_and_leaves_only_when_it_can(site, train, ledger_folder, monkeypatch):
    def full(*_, **__):
        raise PrivacyError("the disk is full")

    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", full)
        assert _code(Desk(site, _app(calls)).answer(train())) == contract.CODE_BUDGET
    assert [charge.content for charge in Ledger.open(ledger_folder).charges()] == [None]
    assert _code(Desk(site, _app(calls)).answer(train())) == 0
    assert calls == [1]
    assert len(Ledger.open(ledger_folder).charges()) == 1


def test_what_the_site_file_forbids_costs_nothing(site, train, ledger_folder, phantom_64px):
    mark = Ledger.open(ledger_folder).mark()
    for policy in (
        {"accept": {"max_rounds": 1}, "privacy": _privacy(ledger_folder)},
        {"min_patients": 1000, "privacy": _privacy(ledger_folder)},
        {"privacy": _privacy(ledger_folder, min_noise_multiplier=1.0)},
        {"privacy": _privacy(ledger_folder, patients=None)},
    ):
        write_site(site, phantom_64px, **policy)
        code = _code(Desk(site, _app([])).answer(train(round=2)))
        assert code in (contract.CODE_AGAINST_POLICY, contract.CODE_WITHHELD)
    assert "policy.privacy.patients is null" in _lines(site)[-1]["decision"]
    assert Ledger.open(ledger_folder).mark() == mark


@pytest.mark.parametrize("kind", [contract.JOIN, contract.TRAIN])
def test_without_a_ledger_nothing_with_privacy_is_answered(kind, site, train, weights, phantom_64px, ledger_folder):
    write_site(site, phantom_64px, privacy=_privacy(None))
    message = functools.partial(centre_message, kind, plan=PLAN_WITH_PRIVACY, weights=weights, round=0)
    calls = []
    assert _code(Desk(site, _app(calls)).answer(message())) == contract.CODE_BUDGET
    assert "policy.privacy.ledger_folder is null" in _lines(site)[-1]["decision"]
    shutil.rmtree(ledger_folder)
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder))
    assert _code(Desk(site, _app(calls)).answer(message())) == contract.CODE_BUDGET
    assert "there is no privacy ledger" in _lines(site)[-1]["decision"]
    assert not ledger_folder.exists()
    assert calls == []


def test_a_backup_that_is_put_back_refunds_nothing(site, train, ledger_folder, tmp_path):
    desk = Desk(site, _app([]))
    desk.answer(train())
    shutil.copytree(ledger_folder, tmp_path / "backup")
    desk.answer(train(round=2))
    shutil.rmtree(ledger_folder)
    shutil.copytree(tmp_path / "backup", ledger_folder)
    for again in (desk, Desk(site, _app([]))):
        assert _code(again.answer(train(round=3))) == contract.CODE_BUDGET
    assert "a backup refunds nothing" in _lines(site)[-1]["decision"]
    _forget_state(site)
    _, told = aecnn_client("budget", "-f", site.folder, code=1)
    assert "older copy" in told


def _forget_state(site):
    """Puts the memory of the ledger back to before the first round; the audit log still knows it."""
    state = SiteState(site.database)
    with state._transaction() as connection:
        connection.execute("DELETE FROM ledger_seen")
    assert ledger_seen(site.audit_log, state).sequence > 1


def test_an_evaluation_with_noise_is_paid_by_those_who_validate(site, train, ledger_folder, phantom_64px, weights):
    noised = PRIVACY.model_copy(
        update={"evaluation": EvaluationPrivacyConfig(epsilon=1.0, every_rounds=2, total_evaluations=2)}
    )
    plan = PLAN_WITH_PRIVACY.model_copy(
        update={"training": PLAN_WITH_PRIVACY.training.model_copy(update={"privacy": noised})}
    )
    desk = Desk(site, _app([]))
    assert _code(desk.answer(train(plan=plan))) == contract.CODE_AGAINST_POLICY  # no noised histogram leaves by default
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder, max_evaluation_epsilon=1.0))
    assert contract.HISTOGRAMS not in desk.answer(train(plan=plan)).content
    assert contract.HISTOGRAMS in desk.answer(train(plan=plan, round=2)).content
    judged = centre_message(contract.EVALUATE, weights=weights, plan=plan, round=3)
    assert contract.HISTOGRAMS in desk.answer(judged).content
    charges = Ledger.open(ledger_folder).charges()
    assert [charge.what for charge in charges] == ["train", "train", "evaluate", "evaluate"]
    assert {charge.mechanism.sample_rate for charge in charges[2:]} == {1.0}
    assert charges[2].cohort == charges[3].cohort != charges[1].cohort == charges[0].cohort
    assert epsilon_of([charge.mechanism for charge in charges[2:]], delta=DELTA) == pytest.approx(1.0, abs=0.015)
    write_site(
        site, phantom_64px, report={"histograms": False}, privacy=_privacy(ledger_folder, max_evaluation_epsilon=1)
    )
    assert contract.HISTOGRAMS not in desk.answer(train(plan=plan, round=4)).content
    assert [charge.what for charge in Ledger.open(ledger_folder).charges()[4:]] == ["train"]


def test_whoever_an_answer_without_privacy_tells_of_is_noted_and_no_cap_counts_it(site, train, ledger_folder):
    """The counts of the joining are of everybody, the figures of an evaluation of those who validate."""
    weights = initial_weights()
    desk = Desk(site, app_module.app)
    for _ in range(2):
        for kind in (contract.JOIN, contract.EVALUATE, contract.TRAIN):
            message = centre_message(
                kind, weights=None if kind == contract.JOIN else weights, round=kind != contract.JOIN
            )
            assert _code(desk.answer(message)) == 0
    assert _lines(site)[-1][LINE_KEY]["sequence"] == Ledger.open(ledger_folder).mark().sequence
    assert _code(desk.answer(train(run_id="b" * 16))) == 0
    *unprotected, protected = Ledger.open(ledger_folder).charges()
    assert {charge.what for charge in unprotected} == {"unprotected"}
    joined, judged, trained, validated = unprotected
    assert [charge.about.kind for charge in unprotected] == [contract.JOIN, contract.EVALUATE, *[contract.TRAIN] * 2]
    assert trained.cohort == protected.cohort != judged.cohort == validated.cohort != joined.cohort
    assert trained.mechanism.steps > 0 == validated.mechanism.steps
    shown, _ = aecnn_client("budget", "-f", site.folder)
    assert "3 answers left without differential privacy; ε speaks of the others only" in shown


def test_an_answer_whose_patients_may_be_others_than_those_who_paid_does_not_leave(
    site, train, ledger_folder, phantom_64px
):
    """The site file is edited while the answer is made, and edited back: it is paid for, and withheld."""
    patients = hospital_of({"site": str(site.site)}, {}).manifest.patients
    (site.folder / "few.txt").write_text("\n".join(patients[: len(patients) // 2]))
    before = site.site.read_text()

    def trains():
        site.site.write_text(before.replace("data:\n", "data:\n  patients_file: few.txt\n"))
        hospital_of({"site": str(site.site)}, {})
        site.site.write_text(before)

    assert _code(Desk(site, _app([], at_work=trains)).answer(train())) == contract.CODE_WITHHELD
    (charge,) = Ledger.open(ledger_folder).charges()
    assert charge.content == f"code {contract.CODE_WITHHELD}"
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder, max_epsilon=7.5))

    def raises_the_cap():
        write_site(site, phantom_64px, privacy=_privacy(ledger_folder))

    assert _code(Desk(site, _app([], at_work=raises_the_cap)).answer(train())) == 0  # of the same patients


def test_a_local_checkpoint_is_only_gone_on_with_under_its_own_reservation(site, train, ledger_folder, phantom_64px):
    patients = hospital_of({"site": str(site.site)}, {}).manifest.patients
    found = []
    for withdrawn in ([], [], patients[:9]):  # after the second crash
        (site.folder / "withdrawn.txt").write_text("\n".join(["# nobody", *withdrawn]))
        write_site(site, phantom_64px, privacy=_privacy(ledger_folder))
        listed = f"data:\n  excluded_patients: {site.folder / 'withdrawn.txt'}\n"
        site.site.write_text(site.site.read_text().replace("data:\n", listed))

        def at_work():
            found.append(site.checkpoint.exists())
            site.checkpoint.write_bytes(b"half a round")
            raise Killed

        with pytest.raises(Killed):
            Desk(site, _app([], at_work=at_work)).answer(train())
    assert found == [False, True, False]


def test_budget_tells_spent_reserved_and_left_by_run_and_in_total(site, train, ledger_folder, tmp_path):
    for number, run in ((1, "a"), (2, "a"), (1, "b")):
        Desk(site, _app([])).answer(train(round=number, run_id=run * 16, run=f"run-{run}"))
    with pytest.raises(Killed):
        Desk(site, _app([], at_work=_killed)).answer(train(round=2, run_id="b" * 16, run="run-b"))
    plot = tmp_path / "budget.svg"
    document = json.loads(aecnn_client("budget", "-f", site.folder, "--json", "--plot", plot)[0])
    assert (document["adjacency"], document["delta"], document["max_epsilon"]) == (ADJACENCY, DELTA, 8.0)
    total = {steps: epsilon_of([Mechanism(0.917, 0.05, steps)], delta=DELTA) for steps in (80, 120, 160)}
    assert (document["epsilon"], document["settled"]) == (total[160], total[120])
    assert document["reserved"] == pytest.approx(total[160] - total[120])
    assert document["left"] == pytest.approx(8.0 - total[160])
    assert [(run["run"], run["rounds"], run["unsettled"], run["epsilon"]) for run in document["runs"]] == [
        ("run-a", 2, 0, total[80]),
        ("run-b", 1, 1, total[80]),
    ]
    assert [(charge["state"], charge["stage"]) for charge in document["charges"]] == [
        *(("settled", "round 1"), ("settled", "round 2"), ("settled", "round 1"), ("reserved", "round 2"))
    ]
    assert document["patients"] == Ledger.open(ledger_folder).num_patients()
    assert "<svg" in plot.read_text()
    shown, _ = aecnn_client("budget", "-f", site.folder, "--plot", tmp_path / "budget.png")
    assert f"{total[160]:.2f} of 8, by the patient who has spent most" in shown
    assert f"{total[160] - total[120]:.2f} of it, by answers that were begun and not given yet" in shown
    assert "run-b (bbbbbbbbbbbbbbbb)" in shown
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    _, told = aecnn_client("budget", "-f", site.folder, "--plot", tmp_path / "budget.txt", code=2)
    assert ".svg or .png or .pdf" in told


def test_budget_of_a_new_ledger_is_whole(site):
    shown, _ = aecnn_client("budget", "-f", site.folder)
    assert "0.00 of 8" in shown
    assert "nothing was trained yet" in shown
    document = json.loads(aecnn_client("budget", "-f", site.folder, "--json")[0])
    assert (document["epsilon"], document["left"], document["runs"]) == (0.0, 8.0, [])


def test_status_tells_the_budget_as_the_ledger_has_it_written(site, train, ledger_folder):
    assert "privacy     ε 0.00 of 8 spent" in _status(site)
    for number in (1, 2):
        Desk(site, _app([])).answer(train(round=number))
    spent = epsilon_of([Mechanism(0.917, 0.05, 80)], delta=DELTA)
    assert f"privacy     ε {spent:.2f} of 8 spent by the patient who has spent most, {8.0 - spent:.2f} left" in (
        _status(site)
    )
    document = json.loads(_status(site, "--json"))
    assert document["budget"] == {"max_epsilon": 8.0, "epsilon": spent, "left": 8.0 - spent, "fault": None}
    shutil.rmtree(ledger_folder)
    assert "no request with differential privacy is answered: " in _status(site)
    document = json.loads(_status(site, "--json"))
    assert document["budget"]["epsilon"] is None
    assert "--adopt-ledger" in document["budget"]["fault"]


def _status(site, *options):
    return aecnn_client("status", "-f", site.folder, *options, code=1)[0]  # it has no key, which is a fault


def test_a_lost_ledger_is_replaced_only_by_hand_and_the_log_says_so(site, train, ledger_folder):
    desk = Desk(site, _app([]))
    desk.answer(train())
    seen = SiteState(site.database).ledger_seen()
    shutil.rmtree(ledger_folder)
    _, told = aecnn_client("budget", "-f", site.folder, code=1)
    assert "--adopt-ledger" in told
    _, told = aecnn_client("budget", "-f", site.folder, "--adopt-ledger", code=2)
    assert "was not confirmed" in told
    assert not ledger_folder.exists()
    shown, told = aecnn_client("budget", "-f", site.folder, "--adopt-ledger", "--yes", "--json")
    assert json.loads(shown)["epsilon"] == 0.0
    assert "is made and used from now on" in told
    note = _lines(site)[-1]
    assert note["direction"] == "note"
    assert f"in place of {seen.ledger}, change {seen.sequence}" in note["decision"]
    assert _code(Desk(site, _app([])).answer(train())) == contract.CODE_BUDGET  # its answer was paid for elsewhere
    assert _code(Desk(site, _app([])).answer(train(round=2))) == 0


def test_init_makes_one_ledger_for_all_clients_of_an_account(phantom_64px, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    federation = federation_file(tmp_path / "federation.yaml")
    options = ("--federation", federation, "--data", phantom_64px, "--device", "cpu")
    shown, _ = aecnn_client("init", tmp_path / "a", "--name", "a", *options)
    folder = tmp_path / "home" / "aecnn" / "privacy-ledger"
    assert default_ledger_folder() == folder
    assert f"The privacy ledger is made: {folder}" in shown
    shown, _ = aecnn_client("init", tmp_path / "b", "--name", "b", *options)
    assert f"The privacy ledger was there, and what it knows counts here too: {folder}" in shown
    for name in "ab":
        config = load_config(tmp_path / name / "site.yaml", SiteConfig)
        assert config.policy.privacy.ledger_folder == folder
        assert SiteState(tmp_path / name / "state" / "state.sqlite").ledger_seen() == Ledger.open(folder).mark()
    document = json.loads(
        aecnn_client("init", tmp_path / "c", "--name", "c", *options, "--ledger-folder", tmp_path / "own", "--json")[0]
    )
    assert document["ledger"] == {"folder": str(tmp_path / "own"), "is_new": True}
    assert stat.S_IMODE((tmp_path / "own" / "ledger.sqlite").stat().st_mode) == 0o600
    shutil.rmtree(folder)
    _, told = aecnn_client("budget", "-f", tmp_path / "a", code=1)  # a ledger that was never used is missed as well
    assert "there is no privacy ledger" in told


def test_init_on_a_place_that_can_hold_no_ledger_makes_nothing(phantom_64px, tmp_path, monkeypatch):
    federation = federation_file(tmp_path / "federation.yaml")
    make = functools.partial(make_folder, tmp_path / "site", federation=federation, name="a", data=phantom_64px)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    for folder in (tmp_path / "used", Path("/proc/nobody/ledger")):
        with pytest.raises(PrivacyError):
            make(ledger_folder=folder)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/home {tmp_path.resolve()} nfs4 rw 0 0\n")
    monkeypatch.setattr("client.ledger_store._MOUNTS", mounts)
    with pytest.raises(PrivacyError, match=r"network file system \(nfs4\).*--ledger-folder"):
        make(ledger_folder=tmp_path / "ledger")
    assert not (tmp_path / "site").exists()
    assert not (tmp_path / "ledger").exists()


def test_a_delta_that_would_allow_one_patients_data_to_leave_is_refused(site, phantom_64px):
    write_site(site, phantom_64px, privacy={"patients": 100, "delta": 0.01})
    with pytest.raises(ConfigError, match=r"must be below 0\.01"):
        load_config(site.site, SiteConfig)


def test_the_last_line_with_a_key_is_found_across_blocks_of_the_log(tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl", SiteState(tmp_path / "state.sqlite"))
    assert last_with(tmp_path / "audit.jsonl", "ledger") is None
    log.append({"ledger": {"id": "old"}})
    log.append({"ledger": {"id": "x"}, "text": "é" * 40})
    for number in range(20):
        log.append({"records": {"ledger": {"id": "forged"}}, "text": '"ledger":{"id":"forged"}', "n": number})
    for block in (7, 100, 1 << 20):
        monkeypatch.setattr("client.audit_log._TAIL_BYTES", block)
        assert last_with(tmp_path / "audit.jsonl", "ledger")["ledger"] == {"id": "x"}
        assert last_with(tmp_path / "audit.jsonl", "absent") is None


def test_work_that_ends_in_a_code_is_paid_for_and_costs_again(site, train, ledger_folder):
    """Whether it ends so may follow from the noise: tried for nothing, it would tell more each time."""

    def fail():
        raise RuntimeError

    calls = []
    failing = Desk(site, _app(calls, at_work=fail))
    assert [_code(failing.answer(train())) for _ in range(2)] == [contract.CODE_FAILED] * 2
    assert _code(Desk(site, _app(calls)).answer(train())) == 0
    charges = Ledger.open(ledger_folder).charges()
    assert [charge.content == "code 100" for charge in charges] == [True, True, False]
    assert Ledger.open(ledger_folder).spent(delta=DELTA) == epsilon_of([Mechanism(0.917, 0.05, 120)], delta=DELTA)


@pytest.mark.parametrize("kind", [contract.JOIN, contract.TRAIN, contract.EVALUATE])
def test_a_run_that_had_privacy_is_not_answered_without(kind, site, train):
    desk = Desk(site, _app([]))
    assert _code(desk.answer(train())) == 0
    plain = centre_message(kind, weights=initial_weights(), round=2)
    assert _code(desk.answer(plain)) == contract.CODE_AGAINST_POLICY
    assert "was answered with differential privacy, and now asks without" in _lines(site)[-1]["decision"]


def test_more_noised_histograms_than_the_site_allows_in_a_run_are_refused(
    site, train, ledger_folder, phantom_64px, weights
):
    noised = PRIVACY.model_copy(
        update={"evaluation": EvaluationPrivacyConfig(epsilon=1.0, every_rounds=1, total_evaluations=1)}
    )
    plan = PLAN_WITH_PRIVACY.model_copy(
        update={"training": PLAN_WITH_PRIVACY.training.model_copy(update={"privacy": noised})}
    )
    write_site(site, phantom_64px, privacy=_privacy(ledger_folder, max_evaluation_epsilon=1.0))
    desk = Desk(site, _app([]))
    assert _code(desk.answer(train(plan=plan))) == 0
    assert _code(desk.answer(train(plan=plan, round=2))) == contract.CODE_BUDGET
    assert "policy.privacy.max_evaluation_epsilon is 1" in _lines(site)[-1]["decision"]


def test_no_two_lines_of_the_log_can_be_guessed_from_their_hash(site, train):
    Desk(site, _app([])).answer(train())
    salts = {line["salt"] for line in _lines(site)}
    assert len(salts) == len(_lines(site))
    assert all(len(salt) == 32 for salt in salts)
