"""Privacy at the centre: what it believes of a private answer, what it composes and shows, and noise of its own."""

import contextlib
import io
import json
import logging
import math
import re
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from scipy.stats import norm

import simulations.cli
from aecnn import contract
from aecnn.config import FederationConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig, validate_config
from aecnn.contract import HospitalCounts, RoundReport
from aecnn.errors import ConfigError, FederationError
from aecnn.evaluation.histogram import NUM_BINS
from aecnn.evaluation.noised import NOISED_BINS, auroc_of_noised
from aecnn.evaluation.report.history import history_of
from aecnn.model.weights import pack_weights
from aecnn.privacy_config import CentralPrivacyConfig
from aecnn.training.privacy.accounting import Mechanism, epsilon_of, noise_for
from aecnn.training.privacy.promise import promise_of
from federation_in_process import small_config
from scripted_hospitals import PLAN as OPEN_PLAN
from server.admission import fault_of_judgement, fault_of_update, faults_of_values
from server.average import Update
from server.central_privacy import aggregate_with_noise, clip_of, epsilon_of_rounds, planned_central
from server.history import round_event, validation_event
from server.loop import better
from server.privacy import Spending, fault_of_report, is_judged_in, spent_in_words
from server.progress import plain_lines
from server.rounds_table import rounds_table
from server.spool import Spool
from server.store import Candidate
from server.wire import AnswerError, read_answer
from simulations.grid import InProcessGrid

COUNTS = HospitalCounts(
    num_train_images=50,
    num_train_patients=50,
    num_validation_images=0,
    num_validation_patients=0,
    num_skipped_images=0,
)


def _plan(**privacy) -> Plan:
    training = {"local_steps": 2, "privacy": {"sample_rate": 0.25, "noise_multiplier": 1.5, **privacy}}
    return Plan(
        images=ImagesConfig(size_px=64),
        model=ModelConfig(backbone="resnet18", normalisation="group"),
        training=TrainingConfig.model_validate(training),
    ).over(3)


def _report(**changes) -> RoundReport:
    told = {"num_images": 50, "num_steps": 2, "noise_multiplier": 1.5, "sample_rate": 0.25, "delta": 1e-5}
    return RoundReport(**{**told, **changes})


@pytest.fixture(autouse=True)
def _in_a_run():
    """Flower makes messages in a process that has an identity."""
    InProcessGrid(ClientApp(), num_nodes=1, run_config={})


# --- what is believed


def test_a_report_that_says_what_the_plan_asks_is_believed():
    assert fault_of_report(_report(), counts=COUNTS, plan=_plan()) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"noise_multiplier": 1.4}, "noise-multiplier 1.4, and the plan asks for 1.5"),
        ({"noise_multiplier": 3.0}, "noise-multiplier 3, and the plan asks for 1.5"),
        ({"sample_rate": 0.5}, "sample-rate 0.5, and the plan asks for 0.25"),
        ({"num_steps": 1}, "num-steps 1, and the plan asks for 2"),
        ({"delta": 1e-4}, "delta 0.0001, and the plan asks for 1e-05"),
        ({"noise_multiplier": None, "sample_rate": None, "delta": None}, "no differential privacy"),
    ],
)
def test_a_report_of_other_privacy_than_the_plans_is_refused(changes, told):
    assert told in fault_of_report(_report(**changes), counts=COUNTS, plan=_plan())


def test_where_the_plan_names_epsilon_the_noise_may_be_more_and_not_less():
    plan = _plan(noise_multiplier=None, epsilon=4.0)
    solved = promise_of(plan, declared_patients=50).noise_multiplier
    for factor, is_believed in ((1.0, True), (1.2, True), (0.9, False)):
        fault = fault_of_report(_report(noise_multiplier=factor * solved), counts=COUNTS, plan=plan)
        assert (fault is None) is is_believed


def test_a_private_report_has_no_place_in_a_plan_without_privacy():
    assert "the plan has none" in fault_of_report(_report(), counts=COUNTS, plan=OPEN_PLAN)


def test_a_hospital_that_declares_nobody_or_too_many_for_delta_is_refused_in_words():
    nobody = COUNTS.model_copy(update={"num_train_patients": 0})
    assert "declared no training patient" in fault_of_report(_report(), counts=nobody, plan=_plan())
    assert "must be below" in fault_of_report(_report(), counts=COUNTS, plan=_plan(delta=0.5))


def _answer(tmp_path, array=None, name=contract.NOISED_COUNTS, *, validation=None, report=None):
    origin = contract.Origin(hospital="a", round=1, fingerprint=contract.code_fingerprint())
    content = RecordDict({contract.ORIGIN: ConfigRecord(origin.to_wire())})
    if array is not None:
        content[contract.HISTOGRAMS] = ArrayRecord({name: Array(array)})
    if validation is not None:
        content[contract.VALIDATION] = ConfigRecord(validation.to_wire())
    if report is not None:
        content[contract.REPORT] = ConfigRecord(report.to_wire())
        content[contract.WEIGHTS] = ArrayRecord({contract.PACKED: Array(pack_weights(_weights(1)))})
    reply = Message(content, 2, "train")
    return read_answer(reply, kind="train", hospital="a", spool=Spool(tmp_path / "spool"), round_number=1)


def _judgement(answer, plan, *, is_judged=True):
    accepted = {contract.code_fingerprint()}
    return fault_of_judgement(answer, round_number=1, accepted=accepted, counts=COUNTS, plan=plan, is_judged=is_judged)


def test_noised_counts_may_be_negative_and_more_than_there_are_images_but_not_absurd(tmp_path):
    counts = np.full((14, 2, NOISED_BINS), -3, dtype=np.int64)
    counts[0] = 1000
    answer = _answer(tmp_path, counts)
    np.testing.assert_array_equal(answer.noised, counts)
    assert answer.histogram is None
    assert _judgement(answer, _plan()) is None
    for wrong in (counts[:13], counts.astype(np.float64), np.full_like(counts, 2**62), np.full_like(counts, -(2**62))):
        with pytest.raises(AnswerError):
            _answer(tmp_path, wrong)


def test_each_kind_of_plan_takes_its_own_kind_of_counts_alone(tmp_path):
    noised = _answer(tmp_path, np.zeros((14, 2, NOISED_BINS), dtype=np.int64))
    exact = _answer(tmp_path, np.zeros((14, 2, NUM_BINS), dtype=np.int32), contract.SCORE_COUNTS)
    sums = _answer(tmp_path, validation=contract.ValidationReport(num_images=1, bce_sum=1.0, mse_sum=1.0))
    assert "no differential privacy" in _judgement(noised, OPEN_PLAN).reason
    assert "without noise" in _judgement(exact, _plan()).reason
    assert "without noise" in _judgement(sums, _plan()).reason
    assert "asks for none" in _judgement(noised, _plan(), is_judged=False).reason
    assert _judgement(exact, OPEN_PLAN) is None


def test_a_private_update_must_say_so_and_claim_no_more_than_declared(tmp_path):
    model = Spool(tmp_path / "model").put_model(pack_weights(_weights(0)).data)
    assert fault_of_update(_answer(tmp_path, report=_report()), counts=COUNTS, model=model, plan=_plan()) is None
    for report, code in (
        (RoundReport(num_images=50, num_steps=2), contract.REFUSED_FORM),
        (_report(num_images=51), contract.REFUSED_COUNTS),
    ):
        fault = fault_of_update(_answer(tmp_path, report=report), counts=COUNTS, model=model, plan=_plan())
        assert fault.code == code


def test_the_model_is_judged_in_every_kth_round_and_after_the_last():
    plan = _plan(evaluation={"epsilon": 1.0, "every_rounds": 3})
    assert [n for n in range(1, 12) if is_judged_in(n, plan=plan, num_rounds=10)] == [3, 6, 9, 11]
    assert not any(is_judged_in(n, plan=_plan(), num_rounds=10) for n in range(1, 12))
    assert all(is_judged_in(n, plan=OPEN_PLAN, num_rounds=10) for n in range(1, 12))


def test_the_best_of_the_judged_rounds_is_released_and_the_last_where_none_was():
    def released(*aurocs):
        candidate = None
        for number, auroc in enumerate(aurocs, start=1):
            candidate = better(candidate, Candidate(number, auroc))
        return candidate.round_number

    assert released(None, 0.7, None, 0.6, None) == 2
    assert released(None, None, 0.6, None) == 3
    assert released(None, None, None) == 3


def test_hospitals_noised_counts_are_pooled_by_adding(tmp_path):
    rng = np.random.default_rng(0)
    counts = [rng.integers(20, 90, (14, 2, NOISED_BINS)) for _ in range(2)]
    event = validation_event(4, [_answer(tmp_path, one) for one in counts])
    assert list(event["findings"].values()) == pytest.approx(list(auroc_of_noised(counts[0] + counts[1])))
    assert event["is_noised"]
    assert event["num_images"] is event["bce"] is None


# --- what is composed


def _event(hospital="a", **changes):
    cost = {
        "delta": 1e-5,
        "noise_multiplier": 1.5,
        "sample_rate": 0.25,
        "steps": 2,
        "ledger_epsilon": None,
        "evaluation_noise_multiplier": None,
    }
    return {"event": "answer", "hospital": hospital, "round": 1, "training": None, "cost": {**cost, **changes}}


def test_epsilon_is_of_all_rounds_together_at_the_largest_delta():
    spending = Spending("prv", [_event(), _event(noise_multiplier=1.0, steps=3), _event("b"), _event(delta=1e-6)])
    mechanisms = [Mechanism(1.5, 0.25, 4), Mechanism(1.0, 0.25, 3)]
    spent = spending.by_hospital()
    assert spent["a"]["epsilon"] == epsilon_of(mechanisms, delta=1e-5)
    assert (spent["a"]["steps"], spent["a"]["delta"]) == (7, 1e-5)
    assert spent["b"]["epsilon"] == epsilon_of([Mechanism(1.5, 0.25, 2)], delta=1e-5)
    words = spent_in_words(spent)
    assert words == (f"ε {spent['a']['epsilon']:.2f} at δ 1e-05 (largest of 2 hospitals; one patient added or removed)")


def test_where_the_hospitals_ledger_tells_epsilon_that_is_the_number():
    spending = Spending("prv", [_event(ledger_epsilon=1.25), _event(ledger_epsilon=4.5)])
    assert spending.of("a")["epsilon"] == 4.5


def test_an_epsilon_beyond_any_promise_is_null_and_said_so():
    spending = Spending("prv", [_event(noise_multiplier=0.01)])
    assert spending.of("a")["epsilon"] is None
    assert "over 10,000" in spent_in_words(spending.by_hospital())


def test_validation_patients_pay_for_each_noised_histogram_apart_from_training():
    judged = {"noise_multiplier": None, "steps": 0, "evaluation_noise_multiplier": 6.0}
    spent = Spending("prv", [_event(evaluation_noise_multiplier=6.0), _event(**judged)]).of("a")
    assert spent["evaluations"] == 2
    assert spent["evaluation_epsilon"] == epsilon_of([Mechanism(6.0, 1.0, 2)], delta=1e-5)
    assert spent["epsilon"] == epsilon_of([Mechanism(1.5, 0.25, 2)], delta=1e-5)


# --- what is shown


def _shown(events):
    console = Console(width=160)
    with console.capture() as text:
        console.print(rounds_table(events, num_rounds=3))
    return text.get()


def test_what_a_private_hospital_does_not_tell_is_a_dash_never_a_zero_and_epsilon_has_a_column():
    training = dict.fromkeys(("images_seen", "bce", "mse", "latent_alive_fraction", "seconds"))
    training |= {"num_images": 50, "num_steps": 2}
    privacy = {"epsilon": 3.0193, "delta": 1e-5, "steps": 2, "evaluations": 0, "evaluation_epsilon": 0.0}
    answer = {"event": "answer", "round": 1, "hospital": "a", "training": training, "privacy": privacy}
    begin = {"event": "start", "hospitals": {"a": {}}}
    done = {
        "event": "round",
        "round": 1,
        "seconds": 2.5,
        "hospitals": {"a": training},
        "refused": {},
        "missing": [],
        "privacy": {"a": privacy},
    }
    end = {"event": "end", "status": "completed", "reason": None, "privacy": {"a": privacy}}
    lines = [line.split() for line in _shown([begin, answer, done, end]).splitlines()]
    assert "ε" in lines[0]
    assert "patients" in lines[0]
    assert ["1", "a", "50", "–", "–", "–", "3.02", "–", "–"] in lines
    assert ["1", "global", "model", "50", "–", "–", "–", "3.02", "–", "2.5"] in lines
    assert plain_lines(answer, 3) == ["round 1/3  a  50 patients  ε 3.02 at δ 1e-05  – MB"]
    assert plain_lines(end, 3) == [
        "privacy spent: ε 3.02 at δ 1e-05 (of the one hospital; one patient added or removed)"
    ]


def test_who_comes_or_leaves_after_the_last_round_is_told_in_words():
    events = [
        {"event": "left", "hospital": "a", "round": 4, "reason": "revoked"},
        {"event": "joined", "hospital": "b", "round": 4},
        {"event": "left", "hospital": "c", "round": 3, "reason": "revoked"},
    ]
    history = history_of("".join(json.dumps(event) + "\n" for event in events), [], num_rounds=3)
    assert history.incidents == (
        "a left in the evaluation after round 3: revoked.",
        "b came late and took part from the evaluation after round 3.",
        "c left in round 3: revoked.",
    )


@pytest.mark.slow
def test_one_accountant_gives_the_same_number_in_history_report_card_and_summary(phantom_64px, tmp_path):
    config = small_config(
        phantom_64px,
        federation={"num_rounds": 2, "released_round": "best"},
        model={"normalisation": "group"},
        training={
            "privacy": {
                "epsilon": 6.0,
                "sample_rate": 0.3,
                "gradients": "loop",
                "evaluation": {"epsilon": 2.0, "every_rounds": 2},
            }
        },
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    run, stdout, stderr = tmp_path / "run", io.StringIO(), io.StringIO()
    command = ["aecnn-simulate", "run", str(tmp_path / "c.yaml"), "--out", str(run)]
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            patch.object(sys, "argv", command),
            contextlib.suppress(SystemExit),
        ):
            simulations.cli.main()
    finally:
        root.handlers[:] = handlers
    noise = noise_for(epsilon=6.0, delta=1e-5, sample_rate=0.3, steps=4)
    expected = [epsilon_of([Mechanism(noise, 0.3, steps)], delta=1e-5) for steps in (2, 4)]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    trained = [event for event in history if event["event"] == "answer" and event["training"] is not None]
    assert [event["privacy"]["epsilon"] for event in trained] == [expected[0]] * 3 + [expected[1]] * 3
    end = history[-1]
    assert {spent["epsilon"] for spent in end["privacy"].values()} == {expected[1]}
    assert {spent["evaluations"] for spent in end["privacy"].values()} == {2}
    assert all(spent["evaluation_epsilon"] == pytest.approx(2.0, abs=0.01) for spent in end["privacy"].values())
    card = json.loads((run / "model_card.json").read_text())
    assert card["privacy"]["patients"]["hospitals"] == end["privacy"]
    shown = f"{expected[1]:.2f}"
    words = f"ε {shown} at δ 1e-05 (largest of 3 hospitals; one patient added or removed)"
    assert words in " ".join(stdout.getvalue().split())
    assert words in " ".join(stderr.getvalue().split()), "the log"
    assert f"| hospital-1 | {shown} | 1e-05 |" in (run / "model_card.md").read_text()
    report = (run / "report.html").read_text()
    assert 'id="privacy"' in report
    assert len(re.findall(f'<td class="number strong">{re.escape(shown)}</td>', report)) == 3
    # The model after round 1 is judged in round 2, the last one after it; the few patients drown in the noise.
    assert [event["round"] for event in history if event["event"] == "validation"] == [1, 2]
    assert all(event["is_noised"] for event in history if event["event"] == "validation")
    assert "with noise of differential privacy" in report
    assert all(counts["num_validation_images"] is None for counts in history[0]["hospitals"].values())


# --- noise of the centre's own


def _weights(seed, num=(40, 50)):
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=num).astype(np.float32),
        "layer.running_var": (1 + random.random(3)).astype(np.float32),
        "layer.num_batches_tracked": np.array(seed, dtype=np.int64),
    }


@pytest.fixture
def step(tmp_path):
    """Makes one aggregation of updates that move the weight by given arrays."""
    spool = Spool(tmp_path / "spool")

    def run(config, moves, *, state=None):
        model = _weights(0)
        updates = []
        for index, move in enumerate(moves):
            trained = {**_weights(index + 1), "layer.weight": (model["layer.weight"] + move).astype(np.float32)}
            spooled = spool.put(f"h{index}", pack_weights(trained).data, round_number=1)
            updates.append(Update(f"h{index}", spooled, 10 ** (index + 1)))
        spooled_model = spool.put_model(pack_weights(model).data)
        done = aggregate_with_noise(config, updates, model=spooled_model, state=state, round_number=1)
        return done, done.weights["layer.weight"] - model["layer.weight"]

    return run


def _fixed(noise=1.0, clip=1.0):
    return CentralPrivacyConfig(noise_multiplier=noise, clipping_norm=clip)


def test_five_hospitals_and_fifty_rounds_at_epsilon_8_drown_in_noise_of_nine_tenths_of_the_clip():
    """0.9 is by RDP; by the tighter accountant, which is the centre's own, and by the closed form it is 0.85."""
    loose = noise_for(epsilon=8.0, delta=1e-5, sample_rate=1.0, steps=50, accountant="rdp")
    assert loose / 5 == pytest.approx(0.9, abs=0.02)
    noise = noise_for(epsilon=8.0, delta=1e-5, sample_rate=1.0, steps=50)
    mu = math.sqrt(50) / noise  # Balle and Wang 2018: fifty Gaussians are one of this μ
    delta = norm.cdf(mu / 2 - 8 / mu) - math.exp(8) * norm.cdf(-mu / 2 - 8 / mu)
    assert delta == pytest.approx(1e-5, rel=0.05)
    config = _fixed(noise=noise)
    assert epsilon_of_rounds(config, 50) == pytest.approx(8.0, abs=0.02)
    federation = FederationConfig(num_rounds=50, min_hospitals=5, central_privacy=config)
    planned = planned_central(config, federation, num_hospitals=5, num_weights=7_000_000)
    assert planned["noise_to_clip"] == pytest.approx(0.85, abs=0.01)
    assert planned["warning"].startswith("5 hospitals, 50 rounds, ε 8.00: noise of 0.85 × the clip on every weight")
    many = planned_central(config, federation, num_hospitals=100_000, num_weights=7_000_000)
    assert many["warning"] is None


def test_without_much_noise_it_is_the_plain_mean_of_the_clipped_updates_whatever_the_images(step):
    moves = [np.full((40, 50), size / math.sqrt(2000)) for size in (4.0, 0.5)]  # norms 4 and 0.5
    done, moved = step(_fixed(noise=1e-6), moves)
    np.testing.assert_allclose(moved, (1.0 + 0.5) / 2 / math.sqrt(2000), rtol=1e-3)
    model = _weights(0)
    np.testing.assert_array_equal(done.weights["layer.running_var"], model["layer.running_var"])
    assert done.weights["layer.num_batches_tracked"] == model["layer.num_batches_tracked"]
    assert done.weights["layer.weight"].dtype == np.float32


def test_the_noise_on_each_weight_is_the_multiplier_times_the_clip_over_the_updates(step):
    _, moved = step(_fixed(noise=3.0, clip=2.0), [np.zeros((40, 50))] * 4)
    assert moved.std() == pytest.approx(3.0 * 2.0 / 4, rel=0.08)  # 2,000 weights: 1.6 % standard error
    assert abs(moved.mean()) < 0.2


def test_the_noise_never_follows_a_seed_and_leaves_numpys_own_draws_alone(step):
    draws = []
    for _ in range(2):
        np.random.seed(7)
        draws.append(step(_fixed(), [np.zeros((40, 50))])[1])
        after = np.random.random()
        np.random.seed(7)
        assert np.random.random() == after
    assert not np.array_equal(*draws)


def test_a_hospital_that_moves_nothing_stops_nobody(step):
    _, moved = step(_fixed(noise=1e-6), [np.zeros((40, 50)), np.full((40, 50), 0.01)])
    np.testing.assert_allclose(moved, 0.005, atol=1e-5)


def _adaptive(**changes):
    settings = {"clipping": "adaptive", "noise_multiplier": 0.1, "initial_clipping_norm": 0.1, "clip_norm_lr": 0.5}
    return CentralPrivacyConfig(**{**settings, "clipped_count_stddev": 0.051, **changes})


def test_an_adaptive_clip_goes_to_the_median_norm_from_both_sides_and_its_state_goes_on(step):
    """Andrew et al. 2021: of updates with norms 1 to 9, half are to be clipped."""
    moves = [np.full((40, 50), size / math.sqrt(2000)) for size in range(1, 10)]
    for begin in (0.1, 80.0):
        config, state = _adaptive(initial_clipping_norm=begin), None
        for _ in range(60):
            done, _ = step(config, moves, state=state)
            state = bytes(done.state)
        assert 3.5 < clip_of(config, state) < 6.5


def test_the_noise_of_a_round_is_that_of_the_clip_it_applied_and_not_of_the_next(step):
    config = _adaptive(clip_norm_lr=10.0, noise_multiplier=3.0, clipped_count_stddev=200.0, initial_clipping_norm=1.0)
    stds = [step(config, [np.zeros((40, 50))] * 4)[1].std() for _ in range(3)]
    assert stds == pytest.approx([3.0 / 4] * 3, rel=0.1)


def test_adaptive_clipping_with_too_little_noise_on_its_count_is_refused_before_the_first_round():
    config = _adaptive(noise_multiplier=1.0, clipped_count_stddev=None)
    federation = FederationConfig(num_rounds=2, min_hospitals=5, central_privacy=config)
    with pytest.raises(FederationError, match=r"below twice clipped_count_stddev, which is 0\.25 for 5 updates"):
        planned_central(config, federation, num_hospitals=5, num_weights=10)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"central_privacy": {"noise_multiplier": 1.0}}, "needs clipping_norm"),
        (
            {"central_privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0, "clip_norm_lr": 0.2}},
            "clip_norm_lr does not go with clipping 'fixed'",
        ),
        (
            {"central_privacy": {"noise_multiplier": 1.0, "clipping": "adaptive", "clipping_norm": 1.0}},
            "clipping_norm does not go with clipping 'adaptive'",
        ),
        (
            {"central_privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0}, "strategy": {"name": "fedadam"}},
            "set it to fedavg",
        ),
    ],
)
def test_central_privacy_that_cannot_be_is_refused_with_what_to_change(settings, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        validate_config(settings, FederationConfig, subject="federation")


def test_batch_statistics_do_not_go_with_noise_at_the_centre(tmp_path):
    with pytest.raises(ValueError, match="statistics noise would make negative"):
        small_config(tmp_path, federation={"central_privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0}})


def test_under_central_privacy_no_hospital_decides_who_else_is_averaged(tmp_path):
    spool = Spool(tmp_path / "spool")
    model = spool.put_model(pack_weights(_weights(0)).data)
    sizes = {"a": 1e-3, "b": 1e-3, "c": 1e-3, "d": 1e3, "e": 1e30}
    updates = {}
    for name, size in sizes.items():
        moved = {**_weights(0), "layer.weight": _weights(0)["layer.weight"] + np.float32(size)}
        updates[name] = spool.put(name, pack_weights(moved).data, round_number=1)
    assert set(faults_of_values(updates, model=model, max_norm_ratio=10.0).faults) == {"d", "e"}
    faults = faults_of_values(updates, model=model, max_norm_ratio=None).faults
    assert set(faults) == {"e"}, "which no single precision holds the square of"


@pytest.mark.slow
def test_a_run_with_noise_at_the_centre_says_what_it_costs_and_warns(phantom_64px, tmp_path, caplog):
    from simulations.runner import prepare_run, run_prepared

    config = small_config(
        phantom_64px,
        model={"normalisation": "group"},
        federation={
            "central_privacy": {
                "clipping": "adaptive",
                "noise_multiplier": 1.0,
                "clipped_count_stddev": 1.0,
                "initial_clipping_norm": 1e-4,
            }
        },
    )
    path: Path = tmp_path / "run"
    run_prepared(prepare_run(config, path), "inprocess")
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    rounds = [event["central_privacy"] for event in history if event["event"] == "round"]
    expected = [epsilon_of([Mechanism(1.0, 1.0, number)], delta=1e-5) for number in (1, 2)]
    assert [spent["epsilon"] for spent in rounds] == expected
    assert rounds[0]["clipping_norm"] == 1e-4
    assert rounds[1]["clipping_norm"] != 1e-4, "what adaptive clipping learnt is kept in the store"
    assert "Too few hospitals" in caplog.text
    assert "Too few hospitals" in " ".join(_shown(history).split())
    report = (path / "report.html").read_text()
    assert "Too few hospitals" in report
    assert f"ε {expected[1]:.2f} at δ 1e-05" in report
    assert f"ε {expected[1]:.2f}" in (path / "model_card.md").read_text()
    told = round_event(
        1, [], admitted=[], attempt=1, seconds=1.0, refused={}, missing=[], privacy={}, central_privacy=rounds[0]
    )
    assert f"hospital-level ε {expected[0]:.2f}" in plain_lines(told, 2)[-1]
