"""The audit: it leaves a true claim standing, refutes sabotaged ones, and sees everything where there is no privacy."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from typer.testing import CliRunner

from aecnn.cli import app
from aecnn.commands import privacy_audit
from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig, Plan, TrainingConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.errors import ConfigError
from aecnn.evaluation.auroc import auroc
from aecnn.model.joint import build_model
from aecnn.model.loss import joint_loss_per_image
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.privacy.audit import (
    Evidence,
    _conjugate_gradients,
    _shares,
    attack,
    claimed_epsilon,
    lower_bound,
    without_privacy,
)
from aecnn.training.privacy.canaries import with_canaries
from aecnn.training.privacy.gradients import trained
from aecnn.training.privacy.promise import promise_of
from aecnn.training.privacy.sampling import PatientRows
from conftest import PROJECT
from entropy_of_tests import SeededEntropy
from small_model_of_tests import small_model

CPU = torch.device("cpu")
DELTA = 1e-5
NUM_CANARIES, IMAGES_PER_CANARY = 60, 16


# --- the bound


def test_right_guesses_of_pure_privacy_are_bounded_like_randomised_response():
    """δ = 0: the bound is the one of Clopper and Pearson on how often guesses are right, as a log-odds."""
    from scipy.stats import beta

    for guesses, correct in ((40, 40), (100, 80), (1000, 600)):
        least = beta.ppf(0.05, correct, guesses - correct + 1)
        found = lower_bound(num_canaries=2 * guesses, num_guesses=guesses, num_correct=correct, delta=0.0)
        assert found == pytest.approx(math.log(least / (1.0 - least)), abs=2e-4)


def test_all_guesses_right_bound_epsilon_in_closed_form_and_chance_bounds_nothing():
    found = lower_bound(num_canaries=100, num_guesses=100, num_correct=100, delta=0.0)
    share = 0.05 ** (1 / 100)
    assert found == pytest.approx(math.log(share / (1.0 - share)), abs=2e-4)
    assert lower_bound(num_canaries=100, num_guesses=100, num_correct=50, delta=0.0) == 0.0
    assert lower_bound(num_canaries=100, num_guesses=100, num_correct=0, delta=0.0) == 0.0


def _published(m, r, v, eps, delta):
    """Appendix D of Steinke, Nasr and Jagielski (2023), line by line."""
    q = 1 / (1 + math.exp(-eps))
    beta = binom.sf(v - 1, r, q)
    alpha, total = 0.0, 0.0
    for i in range(1, v + 1):
        total += binom.pmf(v - i, r, q)
        if total > i * alpha:
            alpha = total / i
    return min(beta + alpha * delta * 2 * m, 1.0)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_bound_is_where_the_published_code_says_5_percent(delta):
    for m, r, v in ((80, 40, 38), (1000, 200, 150), (50, 20, 20)):
        found = lower_bound(num_canaries=m, num_guesses=r, num_correct=v, delta=delta)
        assert _published(m, r, v, found, delta) <= 0.05 < _published(m, r, v, found + 3e-4, delta)


def test_delta_only_lowers_the_bound():
    bounds = [lower_bound(num_canaries=80, num_guesses=40, num_correct=38, delta=d) for d in (0.0, 1e-5, 1e-3)]
    assert bounds == sorted(bounds, reverse=True)


def test_randomised_response_is_hardly_ever_refuted():
    """Guesses as right as ε allows: a 95 % bound exceeds ε in one of twenty experiments at most."""
    epsilon, guesses = 1.0, 100
    right = np.random.default_rng(0).binomial(guesses, 1.0 / (1.0 + math.exp(-epsilon)), size=2000)
    bounds = {v: lower_bound(num_canaries=100, num_guesses=guesses, num_correct=int(v), delta=0.0) for v in set(right)}
    assert 0.01 < np.mean([bounds[v] > epsilon for v in right]) < 0.06


def test_evidence_counts_the_highest_and_the_lowest_quarter_of_each_run():
    scores = np.array([[8.0, 7, 6, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6, 7, 8]])
    included = np.array([[1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1]], dtype=bool)
    found = Evidence(included, scores)
    assert (found.num_guesses, found.num_correct) == (8, 4 + 2)
    each = [auroc(s[:, None], i[:, None].astype(float))[0] for s, i in zip(scores, included, strict=True)]
    assert found.auroc == pytest.approx(np.mean(each))


# --- the attacker's arithmetic


def test_conjugate_gradients_solve():
    random = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 9, generator=random, dtype=torch.float64)
    matrix, wanted = factor @ factor.T, torch.randn(6, generator=random, dtype=torch.float64)
    found = _conjugate_gradients(lambda vector: matrix @ vector, wanted, iterations=6)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted), rtol=1e-8, atol=1e-8)
    assert not _conjugate_gradients(lambda vector: matrix @ vector, torch.zeros(6), iterations=6).any()


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_shares_are_the_least_squares_solution_of_the_gradients_written_out(backbone):
    config = ModelConfig(backbone="resnet18", normalisation="group")
    model = small_model() if backbone == "small" else build_model(config, seed=0, input_size_px=64).train()
    random, parameters = torch.Generator().manual_seed(0), trained(model)
    images = torch.rand(4, 1, 64, 64, generator=random)
    targets = (torch.rand(4, 14, generator=random) < 0.5).float()
    losses = joint_loss_per_image(model(images), images, targets, bce_weight=0.9).total
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    matrix = torch.stack([torch.cat([gradient.flatten() for gradient in row]).double() for row in rows])
    amounts = torch.tensor([0.5, 0.0, 2.0, 0.0])
    released = [sum(a * g for a, g in zip(amounts, own, strict=True)) for own in zip(*rows, strict=True)]
    released = [gradient + 0.01 * torch.randn(gradient.shape, generator=random) for gradient in released]
    flat = torch.cat([gradient.flatten() for gradient in released]).double()
    wanted = torch.linalg.lstsq(matrix.T, flat[:, None]).solution[:, 0]
    torch.testing.assert_close(_shares(losses, parameters, released), wanted, rtol=1e-3, atol=1e-3)


# --- canaries


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64)


@pytest.fixture(scope="module")
def canaries(data):
    return with_canaries(
        data,
        np.arange(12),
        num_canaries=NUM_CANARIES,
        images_per_canary=IMAGES_PER_CANARY,
        random=np.random.default_rng(0),
    )


def test_canaries_stand_behind_the_ordinary_patients_who_stay_as_they_are(data, canaries):
    table = canaries.data.manifest.table
    assert table["patient"].iloc[:12].tolist() == data.manifest.table["patient"].iloc[:12].tolist()
    rows = np.arange(12)
    assert torch.equal(canaries.data.images.read(rows), data.images.read(rows))
    assert np.array_equal(canaries.data.manifest.targets[:12], data.manifest.targets[:12], equal_nan=True)
    assert len(canaries.data.images) == len(canaries.data.manifest) == 12 + NUM_CANARIES * IMAGES_PER_CANARY
    assert (table["patient"].iloc[canaries.rows[5]] == "canary-00005").all()
    assert table["image"].iloc[12:].is_unique


def test_a_canarys_images_are_alike_and_those_of_two_are_not(canaries):
    pictures = canaries.data.images.read(canaries.rows[:2].reshape(-1)).float().reshape(2, IMAGES_PER_CANARY, -1)
    within = (pictures[0, 1:] - pictures[0, 0]).abs().max()
    between = (pictures[0] - pictures[1]).abs().mean()
    assert within <= 2.0
    assert between > 100.0


def test_only_included_canaries_are_trained_on_and_by_image_each_picture_is_a_patient(canaries):
    included = np.zeros(NUM_CANARIES, dtype=bool)
    included[[3, 7]] = True
    rows = canaries.training_rows(included)
    patients = canaries.data.manifest.table["patient"]
    assert {name for name in patients.iloc[rows] if name.startswith("canary")} == {"canary-00003", "canary-00007"}
    split = canaries.by_image()
    assert len(PatientRows.of(split.data.manifest.table["patient"].tolist(), rows)) == rows.size
    assert canaries.num_ordinary_patients == patients.iloc[:12].nunique()


# --- claims and attacks


def _plan(*, sample_rate=1.0, steps=1, rounds=1):
    privacy = PrivacyConfig(
        epsilon=1.0,
        delta=DELTA,
        max_grad_norm=0.05,
        sample_rate=sample_rate,
        total_steps=rounds * steps,
        gradients="hooks",
    )
    return Plan(
        images=ImagesConfig(size_px=64, horizontal_flip=False),
        model=ModelConfig(backbone="resnet18", normalisation="group"),
        training=TrainingConfig(
            optimizer="sgd",
            learning_rate=1e-3,
            weight_decay=0.0,
            batch_size=16,
            local_steps=steps,
            privacy=privacy,
            num_threads=1,
        ),
    )


def _attack(canaries, plan, promise, *, runs=1, rounds=1):
    return attack(
        lambda: small_model(channels=16),
        canaries,
        plan,
        promise,
        num_rounds=rounds,
        num_runs=runs,
        seed=1,
        entropy=SeededEntropy(1),
        device=CPU,
    )


def _promise(plan, canaries):
    return promise_of(plan, declared_patients=canaries.num_ordinary_patients + NUM_CANARIES // 2)


def test_the_claim_is_epsilon_of_the_steps_that_run(canaries):
    promise = _promise(_plan(rounds=2), canaries)
    assert claimed_epsilon(promise, num_rounds=2) == pytest.approx(1.0, abs=0.02)
    assert claimed_epsilon(promise, num_rounds=1) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("sample_rate", "steps", "rounds"), [(1.0, 1, 1), (0.5, 2, 2)])
def test_a_true_claim_stands(canaries, sample_rate, steps, rounds):
    plan = _plan(sample_rate=sample_rate, steps=steps, rounds=rounds)
    promise = _promise(plan, canaries)
    found = _attack(canaries, plan, promise, runs=4, rounds=rounds)
    assert found.epsilon_at_least(delta=DELTA) < claimed_epsilon(promise, num_rounds=rounds)
    assert 0.35 < found.auroc < 0.75  # chance is 0.5; at ε = 1 no attack is better than 0.73, e/(1 + e)


@pytest.mark.slow
def test_a_tenth_of_the_noise_is_found_out(canaries):
    plan = _plan()
    promise = _promise(plan, canaries)
    sabotaged = dataclasses.replace(promise, noise_multiplier=promise.noise_multiplier / 10.0)
    found = _attack(canaries, plan, sabotaged, runs=4)
    assert found.epsilon_at_least(delta=DELTA) > claimed_epsilon(promise, num_rounds=1)


@pytest.mark.slow
def test_clipping_by_image_is_found_out_where_a_patient_has_many(canaries):
    """What image-level privacy does with a patient of sixteen images, who then counts sixteen times."""
    plan = _plan()
    promise = _promise(plan, canaries)
    found = _attack(canaries.by_image(), plan, promise, runs=4)
    assert found.epsilon_at_least(delta=DELTA) > claimed_epsilon(promise, num_rounds=1)


@pytest.mark.slow
def test_without_privacy_the_attacker_knows_who_took_part(canaries):
    plan = _plan(steps=4)
    plain = without_privacy(plan, _promise(plan, canaries))
    assert plain.training.privacy is None
    found = _attack(canaries, plain, None, rounds=1)
    assert found.auroc > 0.9
    assert found.epsilon_at_least(delta=DELTA) > 1.0


# --- the command


AUDIT = str(PROJECT / "configs" / "audit.yaml")


@pytest.mark.slow
def test_the_command_attacks_and_says_what_it_found(tmp_path):
    changes = [f"data.root={tmp_path / 'data'}", "data.phantom.num_patients=6", "training.local_steps=1"]
    changes += ["federation.num_rounds=1", "training.num_threads=1"]
    options = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["audit-privacy", AUDIT, "--canaries", "8", "--json", *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["claimed_epsilon"] == pytest.approx(2.0, abs=0.05)
    assert (found["num_canaries"], found["num_guesses"], found["num_steps"], found["holds"]) == (8, 4, 1, True)
    assert 0.0 <= found["auroc_with_privacy"] <= 1.0


FOUND = privacy_audit.Audit(
    claimed_epsilon=1.0,
    epsilon_at_least=0.25,
    delta=1e-5,
    noise_multiplier=3.7,
    sample_rate=0.5,
    num_steps=8,
    num_canaries=80,
    num_guesses=40,
    num_correct=27,
    auroc_with_privacy=0.55,
    auroc_without_privacy=0.99,
)


@pytest.mark.parametrize(("at_least", "code", "word"), [(0.25, 0, "stands"), (1.5, 1, "refuted")])
def test_a_refuted_claim_is_said_and_is_exit_code_1(monkeypatch, at_least, code, word):
    found = dataclasses.replace(FOUND, epsilon_at_least=at_least)
    monkeypatch.setattr(privacy_audit, "_audit", lambda settings, **_: found)
    done = CliRunner().invoke(app, ["audit-privacy", AUDIT])
    assert done.exit_code == code
    assert f"ε is at least {at_least:.2f}" in done.stdout
    assert "27 of 40 guesses" in done.stdout
    assert word in done.stdout


def test_a_configuration_without_privacy_is_refused_with_the_remedy():
    done = CliRunner().invoke(app, ["audit-privacy", str(PROJECT / "configs" / "demo.yaml")])
    assert isinstance(done.exception, ConfigError)
    assert "training.privacy" in str(done.exception)
