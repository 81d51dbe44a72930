"""Flower's strategies against their papers, in the dtypes of the model, from one round to the next."""

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from aecnn.config import StrategyConfig
from aecnn.errors import FederationError
from aecnn.model.weights import pack_weights
from federation_in_process import image_weighted_mean, same_weights
from server.average import Update
from server.spool import Spool
from server.strategy import aggregate
from simulations.grid import InProcessGrid


@pytest.fixture(autouse=True)
def _in_a_run():
    """Flower makes messages in a process that has an identity."""
    InProcessGrid(ClientApp(), num_nodes=1, run_config={})


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def _weights(seed):
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=(3, 4)).astype(np.float32),
        "layer.scale": np.array(random.normal(), dtype=np.float32),
        "layer.running_var": (1 + random.random(3)).astype(np.float32),
        "layer.num_batches_tracked": np.array(random.integers(0, 100), dtype=np.int64),
    }


def _updates(spool, *weights, counts=(10, 30, 60, 5, 7)):
    return [
        Update(f"h{index}", spool.put(f"h{index}", pack_weights(one).data, round_number=1), count)
        for index, (one, count) in enumerate(zip(weights, counts, strict=False))
    ]


def _step(spool, updates, state=None, number=1, model=None, **config):
    spooled = spool.put_model(pack_weights(_weights(0) if model is None else model).data)
    return aggregate(StrategyConfig(**config), updates, model=spooled, state=state, round_number=number)


@pytest.mark.parametrize("name", StrategyConfig.model_fields["name"].annotation.__args__)
def test_every_strategy_keeps_names_shapes_and_dtypes_and_averages_the_counters(name, spool):
    trained = [_weights(seed) for seed in (1, 2, 3, 4, 5)]
    weights = _step(spool, _updates(spool, *trained), name=name).weights
    for key, array in _weights(0).items():
        assert (weights[key].shape, weights[key].dtype) == (array.shape, array.dtype)
    mean = image_weighted_mean(list(zip(trained, (10, 30, 60, 5, 7), strict=True)))
    assert weights["layer.num_batches_tracked"] == mean["layer.num_batches_tracked"]
    assert (weights["layer.running_var"] > 0).all()


def test_without_momentum_fedavgm_is_fedavg_bit_for_bit(spool):
    updates = _updates(spool, _weights(1), _weights(2))
    plain = _step(spool, updates).weights
    assert same_weights(_step(spool, updates, name="fedavgm", server_momentum=0.0).weights, plain)


def test_fedavgm_moves_on_by_the_momentum_of_the_rounds_before(spool):
    """Hsu et al. 2019: v ← βv + Δ, w ← w − v."""
    first, second = _weights(0), _weights(9)
    one = _step(spool, _updates(spool, _weights(1), _weights(2)), name="fedavgm", server_momentum=0.5)
    two = _step(
        spool,
        _updates(spool, _weights(3), _weights(4)),
        state=bytes(one.state),
        number=2,
        model=second,
        name="fedavgm",
        server_momentum=0.5,
    )
    key = "layer.weight"
    steps = [
        model[key] - image_weighted_mean([(_weights(a), 10), (_weights(b), 30)])[key]
        for model, a, b in ((first, 1, 2), (second, 3, 4))
    ]
    np.testing.assert_allclose(one.weights[key], first[key] - steps[0], rtol=1e-5)
    np.testing.assert_allclose(two.weights[key], second[key] - (0.5 * steps[0] + steps[1]), rtol=1e-4, atol=1e-6)


def test_fedadam_steps_as_the_paper_says_and_its_moments_go_on(spool):
    """Reddi et al. 2021, algorithm 2, with Flower's bias correction."""
    key, beta_1, beta_2, tau, eta = "layer.weight", 0.9, 0.99, 1e-3, 0.05
    model, state, m, v = _weights(0), None, 0.0, 0.0
    expected = model[key].astype(np.float64)
    for number in (1, 2, 3):
        trained = [_weights(10 * number), _weights(10 * number + 1)]
        delta = image_weighted_mean(list(zip(trained, (10, 30), strict=True)))[key] - expected
        m, v = beta_1 * m + (1 - beta_1) * delta, beta_2 * v + (1 - beta_2) * delta**2
        rate = eta * np.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        expected = expected + rate * m / (np.sqrt(v) + tau)
        done = _step(
            spool,
            _updates(spool, *trained),
            state=state,
            number=number,
            model=model,
            name="fedadam",
            server_learning_rate=eta,
        )
        model, state = done.weights, bytes(done.state)
        np.testing.assert_allclose(model[key], expected, rtol=1e-4, atol=1e-6)


def test_optimisers_leave_batch_statistics_to_the_average(spool):
    trained = [_weights(1), _weights(2)]
    mean = image_weighted_mean(list(zip(trained, (10, 30), strict=True)))
    for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"):
        weights = _step(spool, _updates(spool, *trained), name=name).weights
        np.testing.assert_array_equal(weights["layer.running_var"], mean["layer.running_var"])


def test_median_and_trimmed_mean_are_not_moved_by_one_wild_hospital(spool):
    trained = [_weights(seed) for seed in (1, 2, 3, 4, 5)]
    wild = {key: array + 1e6 if array.dtype == np.float32 else array for key, array in trained[4].items()}
    stack = np.stack([one["layer.weight"] for one in [*trained[:4], wild]])
    median = _step(spool, _updates(spool, *trained[:4], wild), name="fedmedian").weights["layer.weight"]
    np.testing.assert_array_equal(median, np.median(stack, axis=0))
    trimmed = _step(spool, _updates(spool, *trained[:4], wild), name="fedtrimmedavg", trimmed_fraction=0.2).weights
    np.testing.assert_allclose(trimmed["layer.weight"], np.sort(stack, axis=0)[1:4].mean(axis=0), rtol=1e-5)


def test_krum_takes_the_update_nearest_to_the_others(spool):
    base = _weights(1)
    near = [{k: a + np.float32(s) if a.dtype == np.float32 else a for k, a in base.items()} for s in (0, 0.1, 0.2, 0.3)]
    wild = {key: array + 50 if array.dtype == np.float32 else array for key, array in base.items()}
    weights = _step(spool, _updates(spool, *near, wild), name="krum", num_malicious=1).weights
    assert any(np.array_equal(weights["layer.weight"], near[index]["layer.weight"]) for index in (1, 2))


def test_what_a_strategy_cannot_do_is_said_in_a_sentence(spool, monkeypatch):
    from flwr.serverapp.exception import AggregationError

    def fail(*_, **__):
        raise AggregationError("too few")

    monkeypatch.setattr("server.strategy.FedTrimmedAvg.aggregate_train", fail)
    with pytest.raises(FederationError, match=r"strategy 'fedtrimmedavg' cannot aggregate 2 updates.*too few"):
        _step(spool, _updates(spool, _weights(1), _weights(2)), name="fedtrimmedavg")
