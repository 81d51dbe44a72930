"""What leaves a hospital under differential privacy: what is noised or was declared beforehand, and nothing else."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.modules.module import register_module_forward_hook

from aecnn import contract
from aecnn.config import ModelConfig
from aecnn.contract import HospitalCounts, RoundReport, ValidationReport
from aecnn.evaluation.histogram import NUM_BINS
from aecnn.evaluation.noised import NOISED_BINS
from aecnn.model.joint import JointAECNN
from aecnn.privacy_config import EvaluationPrivacyConfig, PrivacyConfig
from aecnn.training.privacy.promise import promise_of
from client.app import app as installed_app
from client.guard import guard_egress
from client.policy import refuse_against_policy
from client.privacy import private_report
from client.wire import packed_record, to_array_record
from hospital_in_process import PLAN, asked, centre_message, hospital_folder, initial_weights, write_site

DECLARED = 30


def _plan(*, evaluation=None, **privacy):
    settings = {"noise_multiplier": 1.0, "sample_rate": 0.2, "total_steps": 20, "evaluation": evaluation} | privacy
    training = PLAN.training.model_copy(update={"privacy": PrivacyConfig(**settings)})
    model = ModelConfig(backbone="resnet18", normalisation="group")
    return PLAN.model_copy(update={"training": training, "model": model})


EVALUATION = EvaluationPrivacyConfig(epsilon=4.0, every_rounds=2, total_evaluations=3)


@pytest.fixture(scope="module")
def weights():
    return initial_weights(_plan())


@pytest.fixture
def site(phantom_64px, tmp_path):
    return hospital_folder(
        tmp_path / "st-mary", phantom_64px, privacy={"patients": DECLARED, "max_evaluation_epsilon": 5.0}
    )


def _trained(site, weights, plan, **request):
    message = centre_message(contract.TRAIN, weights=weights, plan=plan, **request)
    return asked(installed_app, message, site)


def _answering(content, site, weights, plan):
    app = ClientApp(mods=[guard_egress, refuse_against_policy])
    app.train()(lambda message, context: Message(content, reply_to=message))
    return asked(app, centre_message(contract.TRAIN, weights=weights, plan=plan), site)


def test_a_hospital_joins_with_the_declared_number_alone(site):
    reply = asked(installed_app, centre_message(contract.JOIN, plan=_plan()), site)
    counts = HospitalCounts.from_wire(dict(reply.content[contract.COUNTS]))
    assert (counts.num_train_images, counts.num_train_patients) == (DECLARED, DECLARED)
    assert counts.positives is None
    assert (counts.num_validation_images, counts.num_validation_patients, counts.num_skipped_images) == (0, 0, 0)


def test_a_private_round_leaves_weights_and_what_they_cost(site, weights):
    reply = _trained(site, weights, _plan())
    assert set(reply.content) == {contract.ORIGIN, contract.REPORT, contract.WEIGHTS}
    assert dict(reply.content[contract.REPORT]) == {
        "num-images": DECLARED,
        "num-steps": 2,
        "noise-multiplier": 1.0,
        "sample-rate": 0.2,
        "delta": 1e-5,
    }


def test_the_same_request_trained_anew_gives_other_weights(site, weights):
    replies = [_trained(site, weights, _plan()).content[contract.WEIGHTS]["packed"].data for _ in range(2)]
    assert replies[0] != replies[1]
    public = [_trained(site, initial_weights(), PLAN).content[contract.WEIGHTS]["packed"].data for _ in range(2)]
    assert public[0] == public[1]


def test_a_noised_histogram_leaves_in_every_kth_round_and_at_the_end(site, weights):
    plan = _plan(evaluation=EVALUATION)
    assert contract.HISTOGRAMS not in _trained(site, weights, plan, round=1).content
    train = _trained(site, weights, plan, round=2).content
    evaluated = [
        asked(installed_app, centre_message(contract.EVALUATE, weights=weights, plan=plan, round=3), site).content
        for _ in range(2)
    ]
    found = [content[contract.HISTOGRAMS][contract.NOISED_COUNTS].numpy() for content in (train, *evaluated)]
    assert all(counts.shape == (14, 2, NOISED_BINS) and counts.dtype == np.int64 for counts in found)
    assert (found[1] != found[2]).any()  # the noise is no seed's
    assert all(contract.VALIDATION not in content for content in (train, *evaluated))
    plain = asked(installed_app, centre_message(contract.EVALUATE, weights=weights, plan=_plan(), round=3), site)
    assert set(plain.content) == {contract.ORIGIN}


def test_under_privacy_every_validation_image_is_judged_alone(site, weights):
    """Who else is in a batch may change the last bits of an image's scores, and weights can be made to magnify that."""
    sizes = []

    def note(module, inputs, output):
        if isinstance(module, JointAECNN):
            sizes.append(len(inputs[0]))

    handle = register_module_forward_hook(note)
    try:
        for plan, start in ((_plan(evaluation=EVALUATION), weights), (PLAN, initial_weights())):
            sizes.append(0)
            asked(installed_app, centre_message(contract.EVALUATE, weights=start, plan=plan, round=3), site)
    finally:
        handle.remove()
    private, public = sizes[1 : sizes.index(0, 1)], sizes[sizes.index(0, 1) + 1 :]
    assert set(private) == {1}
    assert sum(private) == sum(public) > len(public)


@pytest.mark.parametrize("change", ["sum", "seconds", "patients", "steps", "validation", "exact", "noised"])
def test_a_handler_that_says_more_than_was_promised_lets_nothing_leave(change, site, weights):
    plan = _plan()
    report = private_report(promise_of(plan, declared_patients=DECLARED), epsilon=None).to_wire()
    report |= {
        "sum": {"alive-pixels": 3, "lit-pixels": 4},
        "seconds": {"seconds": 1.0},
        "patients": {"num-images": DECLARED - 1},
        "steps": {"num-steps": 1},
    }.get(change, {})
    content = RecordDict({contract.REPORT: MetricRecord(report), contract.WEIGHTS: packed_record(weights)})
    if change == "validation":
        sums = ValidationReport(num_images=1, bce_sum=1.0, mse_sum=1.0)
        content[contract.VALIDATION] = MetricRecord(sums.to_wire())
    if change in ("exact", "noised"):
        name, bins = (contract.SCORE_COUNTS, NUM_BINS) if change == "exact" else (contract.NOISED_COUNTS, NOISED_BINS)
        content[contract.HISTOGRAMS] = to_array_record({name: np.zeros((14, 2, bins), dtype=np.int64)})
    assert _answering(content, site, weights, plan).error.code == contract.CODE_WITHHELD


def test_the_honest_answer_of_the_test_above_leaves(site, weights):
    plan = _plan()
    report = private_report(promise_of(plan, declared_patients=DECLARED), epsilon=None)
    content = RecordDict({contract.REPORT: MetricRecord(report.to_wire()), contract.WEIGHTS: packed_record(weights)})
    assert _answering(content, site, weights, plan).content[contract.REPORT]["num-images"] == DECLARED


def test_a_report_that_claims_privacy_in_a_run_without_it_does_not_leave(site):
    report = RoundReport(num_images=9, num_steps=2, noise_multiplier=1.0, sample_rate=0.1, delta=1e-5)
    content = RecordDict({contract.REPORT: MetricRecord(report.to_wire()), contract.WEIGHTS: packed_record({})})
    assert _answering(content, site, initial_weights(), PLAN).error.code == contract.CODE_WITHHELD


@pytest.mark.parametrize("kind", [contract.JOIN, contract.TRAIN, contract.EVALUATE])
def test_a_site_that_requires_privacy_answers_nothing_without(kind, phantom_64px, site, weights):
    write_site(site, phantom_64px, accept={"requires_privacy": True}, privacy={"patients": DECLARED})
    refused = asked(installed_app, centre_message(kind, weights=initial_weights()), site)
    assert refused.error.code == contract.CODE_AGAINST_POLICY
    answered = asked(installed_app, centre_message(kind, weights=weights, plan=_plan()), site)
    assert contract.ORIGIN in answered.content


@pytest.mark.parametrize(
    ("policy", "plan", "sentence"),
    [
        ({"patients": None, "ledger_folder": "ledger"}, {}, "policy.privacy.patients is null"),
        ({"min_noise_multiplier": 1.5}, {}, "the plan's noise multiplier is 1, policy.privacy.min_noise_multiplier"),
        ({}, {"evaluation": EVALUATION}, "policy.privacy.max_evaluation_epsilon is null: none leave"),
        ({"max_evaluation_epsilon": 3.0}, {"evaluation": EVALUATION}, "noised histograms at ε 4 are asked for"),
        ({}, {"delta": 0.05}, "with 30 patients it must be below 0.0333"),
        ({}, {"total_steps": None}, "total_steps is not given"),
    ],
)
def test_less_than_the_site_file_asks_for_is_refused(policy, plan, sentence, phantom_64px, site, weights, caplog):
    write_site(site, phantom_64px, privacy={"patients": DECLARED} | policy)
    reply = _trained(site, weights, _plan(**plan))
    assert reply.error.code == contract.CODE_AGAINST_POLICY
    assert reply.error.reason == contract.CODE_TEXT[contract.CODE_AGAINST_POLICY]
    assert sentence in caplog.text


def test_a_model_that_mixes_patients_is_refused_under_privacy(site, weights):
    plan = _plan().model_dump()
    plan["model"]["normalisation"] = "batch"
    message = centre_message(contract.TRAIN, weights=weights, plan=_plan())
    record = dict(message.content[contract.REQUEST]) | {"plan-json": json.dumps(plan)}
    message.content[contract.REQUEST] = ConfigRecord(record)
    assert asked(installed_app, message, site).error.code == contract.CODE_REFUSED


def test_a_real_hospital_answers_nothing_private_where_nobody_would_pay(phantom_64px, site, weights, tmp_path):
    """The app under a SuperNode of somebody's own, without our worker: no ledger would know of it."""
    write_site(site, phantom_64px, privacy={"patients": DECLARED, "ledger_folder": str(tmp_path / "ledger")})
    assert _trained(site, weights, _plan()).error.code == contract.CODE_BUDGET
