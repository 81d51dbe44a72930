"""ε against two other accountants and the closed form; composition over rounds; the noise of a whole plan.

The oracle is `dp-accounting`: its RDP, and its privacy loss distributions in place of our numerical composition.
"""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from aecnn.config import Plan
from aecnn.errors import PrivacyError
from aecnn.training.privacy.accounting import Mechanism, default_delta, epsilon_of, merged, noise_for
from aecnn.training.privacy.promise import promise_of

DELTA = 1e-5
RATE, STEPS_PER_ROUND, NUM_ROUNDS = 0.05, 40, 10
AFTER_EACH_ROUND = (3.02, 3.87, 4.56, 5.17, 5.71, 6.22, 6.70, 7.15, 7.58, 7.99)  # of the plan's σ, by PRV

SETTINGS = [  # of σ, q and steps: many small steps, few large ones, small and large ε
    [Mechanism(1.0, 64 / 11_212, 8750)],
    [Mechanism(0.8, 0.05, 400)],
    [Mechanism(4.41, 0.064, 312)],
    [Mechanism(1.5, 0.5, 10)],
    [Mechanism(0.9, 1e-3, 10_000)],
    [Mechanism(1.0, 1.0, 1)],
]
MIXTURES = [
    [Mechanism(1.0, 0.05, 40), Mechanism(0.8, 0.02, 100), Mechanism(3.0, 1.0, 2)],
    [Mechanism(0.7 + 0.1 * study, 0.01 * (study + 1), 30) for study in range(6)],
]


def _oracle(accountant, mechanisms, delta=DELTA):
    for mechanism in mechanisms:
        event = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
        if mechanism.sample_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(mechanism.sample_rate, event)
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, mechanism.steps))
    return accountant.get_epsilon(delta)


def _pld(mechanisms, delta=DELTA):
    return _oracle(PLDAccountant(value_discretization_interval=2e-4), mechanisms, delta)


def _gaussian_epsilon(noise_multiplier, delta):
    """ε of one Gaussian release, from its exact δ (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon):
        half, far = 0.5 / noise_multiplier, epsilon * noise_multiplier
        return norm.cdf(half - far) - math.exp(epsilon) * norm.cdf(-half - far) - delta

    return brentq(excess, 0.0, 200.0)


def _within(mine, true, *, relative=0.01, absolute=0.015):
    return abs(mine - true) <= max(relative * true, absolute)


@pytest.mark.parametrize("mechanisms", SETTINGS + MIXTURES)
def test_rdp_agrees_with_the_oracles_rdp(mechanisms):
    expected = _oracle(RdpAccountant(), mechanisms)
    assert epsilon_of(mechanisms, delta=DELTA, accountant="rdp") == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("mechanisms", SETTINGS + MIXTURES)
def test_prv_agrees_with_the_oracles_privacy_loss_distributions(mechanisms):
    mine, true = epsilon_of(mechanisms, delta=DELTA), _pld(mechanisms)
    assert _within(mine, true)
    assert mine >= true - 2e-3  # an upper bound, but for the oracle's own coarse grid


@pytest.mark.parametrize("delta", [1e-9, 1e-7, 1e-3])
def test_prv_agrees_with_the_oracle_at_other_deltas(delta):
    mechanisms = [Mechanism(1.0, 0.05, 400)]
    assert _within(epsilon_of(mechanisms, delta=delta), _pld(mechanisms, delta))


@pytest.mark.parametrize("noise_multiplier", [0.3, 0.7, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("releases", [1, 9])
def test_without_sampling_epsilon_is_the_closed_form_of_the_gaussian_mechanism(noise_multiplier, releases):
    """Nine releases are one whose noise is three times smaller, exactly."""
    mechanisms = [Mechanism(noise_multiplier, 1.0, releases)]
    expected = _gaussian_epsilon(noise_multiplier / math.sqrt(releases), DELTA)
    assert _within(epsilon_of(mechanisms, delta=DELTA), expected)
    assert epsilon_of(mechanisms, delta=DELTA, accountant="rdp") >= expected


def test_settings_compose_in_any_order_and_in_any_parts():
    first, second, third = MIXTURES[0]
    whole = epsilon_of([first, second, third], delta=DELTA)
    parts = [third, Mechanism(1.0, 0.05, 15), second, Mechanism(1.0, 0.05, 25)]
    assert epsilon_of(parts, delta=DELTA) == whole
    assert merged(parts) == tuple(sorted([first, second, third]))
    assert whole < sum(epsilon_of([mechanism], delta=DELTA) for mechanism in (first, second, third))


def test_fifty_rounds_cost_what_their_steps_cost_together_and_not_what_one_round_does():
    rounds = [Mechanism(1.0, 64 / 11_212, 175)] * 50
    assert epsilon_of(rounds, delta=DELTA, accountant="rdp") == pytest.approx(3.30, abs=0.01)
    assert epsilon_of(rounds[:1], delta=DELTA, accountant="rdp") == pytest.approx(1.01, abs=0.01)
    assert epsilon_of(rounds * 2, delta=DELTA, accountant="rdp") == pytest.approx(4.82, abs=0.01)


@pytest.fixture(scope="module")
def plan_noise():
    return noise_for(epsilon=8.0, delta=DELTA, sample_rate=RATE, steps=STEPS_PER_ROUND * NUM_ROUNDS)


def test_the_noise_is_solved_for_the_whole_plan_and_round_eleven_would_pass_its_epsilon(plan_noise):
    assert plan_noise == pytest.approx(0.917, abs=0.001)
    spent = [
        epsilon_of([Mechanism(plan_noise, RATE, STEPS_PER_ROUND)] * number, delta=DELTA)
        for number in range(1, NUM_ROUNDS + 2)
    ]
    assert spent[:NUM_ROUNDS] == pytest.approx(AFTER_EACH_ROUND, abs=0.015)
    assert spent[NUM_ROUNDS - 1] <= 8.0 < spent[NUM_ROUNDS]


def test_trap_one_a_target_for_every_round_costs_far_more_than_it_says():
    of_a_round = noise_for(epsilon=8.0, delta=DELTA, sample_rate=RATE, steps=STEPS_PER_ROUND)
    assert of_a_round == pytest.approx(0.609, abs=0.001)
    plan = [Mechanism(of_a_round, RATE, STEPS_PER_ROUND * NUM_ROUNDS)]
    assert epsilon_of(plan, delta=DELTA) == pytest.approx(20.9, rel=0.01)


def test_trap_two_an_accountant_that_forgets_the_earlier_rounds_reports_the_first_ones_epsilon(plan_noise):
    last_round = [Mechanism(plan_noise, RATE, STEPS_PER_ROUND)]
    assert epsilon_of(last_round, delta=DELTA) == pytest.approx(3.02, abs=0.01)
    assert epsilon_of(last_round * NUM_ROUNDS, delta=DELTA) > 2.5 * 3.02


@pytest.mark.parametrize(
    ("patients", "batch", "epsilon", "expected"),
    [(1_000, 64, 1.0, 4.41), (1_000, 64, 8.0, 0.98), (5_000, 256, 3.0, 1.64), (76_524, 256, 3.0, 0.76)],
)
def test_twenty_epochs_need_the_noise_of_the_published_table(patients, batch, epsilon, expected):
    rate, steps, delta = batch / patients, math.ceil(20 * patients / batch), default_delta(patients)
    noise = noise_for(epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps)
    assert noise == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"), [(0.1, 0.01, 1000), (1.0, 1.0, 3), (3.0, 0.006, 8750), (40.0, 0.3, 500)]
)
@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_solved_noise_keeps_epsilon_and_barely_less_would_not(epsilon, rate, steps, accountant):
    noise = noise_for(epsilon=epsilon, delta=DELTA, sample_rate=rate, steps=steps, accountant=accountant)
    cost = [
        epsilon_of([Mechanism(some, rate, steps)], delta=DELTA, accountant=accountant)
        for some in (noise, noise * (1.0 - 1e-3))
    ]
    assert cost[0] <= epsilon < cost[1]


@settings(max_examples=5, deadline=None)
@given(
    noise=st.floats(0.5, 8.0),
    rate=st.floats(1e-3, 1.0),
    steps=st.integers(1, 2000),
    more=st.floats(1.05, 3.0),
)
def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise_and_delta(noise, rate, steps, more):
    def cost(noise=noise, rate=rate, steps=steps, delta=DELTA):
        return epsilon_of([Mechanism(noise, rate, steps)], delta=delta)

    here = cost()
    slack = 1e-3 * here + 1e-6  # what the grids of two settings may differ by
    assert cost(steps=math.ceil(steps * more)) >= here - slack
    assert cost(rate=min(1.0, rate * more)) >= here - slack
    assert cost(noise=noise * more) <= here + slack
    assert cost(delta=DELTA * more) <= here + slack
    assert here <= epsilon_of([Mechanism(noise, rate, steps)], delta=DELTA, accountant="rdp")


def test_nothing_done_costs_nothing_and_no_noise_costs_everything():
    for accountant in ("prv", "rdp"):
        assert epsilon_of([], delta=DELTA, accountant=accountant) == 0.0
        assert epsilon_of([Mechanism(1.0, 0.05, 0)], delta=DELTA, accountant=accountant) == 0.0
        assert epsilon_of([Mechanism(0.0, 0.05, 1)], delta=DELTA, accountant=accountant) == math.inf
        assert epsilon_of([Mechanism(1.0, 1.0, 10**7)], delta=DELTA, accountant=accountant) == math.inf
        mixed = [Mechanism(5.0, 0.05, 10), Mechanism(1e-9, 0.05, 1)]
        assert epsilon_of(mixed, delta=DELTA, accountant=accountant) == math.inf
    assert epsilon_of([Mechanism(5.0, 1.0, 1)], delta=0.5) == 0.0  # never below it


def test_where_rounding_drowns_delta_the_looser_bound_stands_in():
    """Opacus's PRV gives 36.3 here, which is below the truth, and at still smaller δ an error."""
    mechanisms = [Mechanism(1.0, 0.01, 100_000)]
    for delta in (1e-12, 1e-15):
        assert epsilon_of(mechanisms, delta=delta) == epsilon_of(mechanisms, delta=delta, accountant="rdp")
    assert epsilon_of(mechanisms, delta=1e-12) >= _pld(mechanisms, 1e-12)


def test_steps_without_end_do_not_fill_the_memory():
    mechanisms = [Mechanism(300.0, 0.01, 10**9)]
    assert epsilon_of(mechanisms, delta=DELTA) <= epsilon_of(mechanisms, delta=DELTA, accountant="rdp")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_an_epsilon_that_no_noise_gives_is_refused_in_a_sentence(accountant):
    with pytest.raises(PrivacyError, match=r"no noise gives ε 1e-09 .* raise epsilon, or lower the steps"):
        noise_for(epsilon=1e-9, delta=DELTA, sample_rate=1.0, steps=100, accountant=accountant)
    with pytest.raises(PrivacyError, match="must be above 0"):
        noise_for(epsilon=0.0, delta=DELTA, sample_rate=1.0, steps=100, accountant=accountant)


def _plan(**privacy):
    return Plan.model_validate(
        {
            "images": {},
            "model": {"normalisation": "group"},
            "training": {"local_steps": STEPS_PER_ROUND, "privacy": {"sample_rate": RATE, **privacy}},
        }
    )


def test_a_delta_that_would_let_a_patients_data_out_is_refused():
    plan = _plan(epsilon=8.0, delta=1e-3).over(NUM_ROUNDS)
    with pytest.raises(PrivacyError, match=r"delta is 0.001, and with 1000 patients it must be below 0.001: .* null"):
        promise_of(plan, declared_patients=1000)
    assert promise_of(plan, declared_patients=999).delta == 1e-3


def test_a_plan_that_does_not_say_how_long_it_is_is_refused():
    with pytest.raises(PrivacyError, match="total_steps is not given"):
        promise_of(_plan(epsilon=8.0), declared_patients=1000)


def test_a_promise_is_of_the_whole_plan(plan_noise):
    promise = promise_of(_plan(epsilon=8.0, delta=DELTA).over(NUM_ROUNDS), declared_patients=1000)
    assert promise.noise_multiplier == plan_noise
    whole = Mechanism(promise.noise_multiplier, RATE, NUM_ROUNDS * STEPS_PER_ROUND)
    assert epsilon_of([whole], delta=promise.delta) == pytest.approx(8.0, rel=1e-3)
    assert promise.round == Mechanism(plan_noise, RATE, STEPS_PER_ROUND)
    fixed = promise_of(_plan(noise_multiplier=2.0).over(NUM_ROUNDS), declared_patients=50_000)
    assert (fixed.noise_multiplier, fixed.delta) == (2.0, default_delta(50_000))


def test_the_evaluations_share_their_epsilon_and_each_is_a_gaussian_of_everybody():
    evaluation = {"epsilon": 2.0, "every_rounds": 5}
    promise = promise_of(_plan(epsilon=8.0, delta=DELTA, evaluation=evaluation).over(NUM_ROUNDS), declared_patients=99)
    one = promise.evaluation  # after rounds 5 and 10, and the last model: three in all
    assert (one.sample_rate, one.steps) == (1.0, 1)
    spent = _gaussian_epsilon(one.noise_multiplier / math.sqrt(3), DELTA)
    assert 2.0 - 0.02 <= spent <= 2.0


def test_the_default_delta_is_a_tenth_of_a_patient_and_never_above_one_in_a_hundred_thousand():
    assert default_delta(100) == 1e-5
    assert default_delta(76_524) == pytest.approx(1.0 / 765_240)


def test_plans_without_privacy_promise_nothing():
    plain = _plan(epsilon=8.0).model_dump() | {"training": {"local_epochs": 1}}
    assert promise_of(Plan.model_validate(plain), declared_patients=100) is None
