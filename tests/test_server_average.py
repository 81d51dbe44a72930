"""FedAvg against its formula, and admission against the faults that were seen in the field."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.average import federated_average


def _weights(seed):
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=(3, 4)).astype(np.float32),
        "layer.running_var": random.random(3).astype(np.float32),
        "layer.num_batches_tracked": np.array(random.integers(0, 100), dtype=np.int64),
    }


def test_the_average_is_the_image_weighted_mean():
    updates = [(_weights(seed), count) for seed, count in ((1, 10), (2, 30), (3, 60))]
    average = federated_average(updates)
    for name in ("layer.weight", "layer.running_var"):
        expected = 0.1 * updates[0][0][name] + 0.3 * updates[1][0][name] + 0.6 * updates[2][0][name]
        np.testing.assert_allclose(average[name], expected, rtol=1e-6)
        assert average[name].dtype == np.float32


def test_integer_counters_stay_integers():
    updates = [({"n": np.array(7, dtype=np.int64)}, 1), ({"n": np.array(10, dtype=np.int64)}, 3)]
    average = federated_average(updates)["n"]
    assert average.dtype == np.int64
    assert average.shape == ()
    assert int(average) == 9  # 9.25 rounded


@given(st.integers(1, 5), st.integers(1, 1000))
def test_the_average_of_equal_models_is_that_model_bit_for_bit(num_hospitals, num_images):
    weights = _weights(4)
    average = federated_average([(weights, num_images)] * num_hospitals)
    for name, array in weights.items():
        np.testing.assert_array_equal(average[name], array)


def test_the_inputs_are_left_as_they_were():
    updates = [(_weights(5), 2), (_weights(6), 3)]
    federated_average(updates)
    for (weights, _), seed in zip(updates, (5, 6), strict=True):
        for name, array in _weights(seed).items():
            np.testing.assert_array_equal(weights[name], array)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no update"):
        federated_average([])
