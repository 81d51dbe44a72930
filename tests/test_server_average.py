"""FedAvg from disk against its formula, and how much memory it takes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn.contract import REFUSED_NORM, REFUSED_VALUES
from aecnn.model.weights import pack_weights
from federation_in_process import image_weighted_mean, same_weights
from server.admission import faults_of_values
from server.average import Update, federated_average
from server.spool import Spool, SpoolError


def _weights(seed, size=12):
    random = np.random.default_rng(seed)
    return {
        "layer.weight": random.normal(size=(3, size // 3)).astype(np.float32),
        "layer.running_var": random.random(3).astype(np.float32),
        "layer.num_batches_tracked": np.array(random.integers(0, 100), dtype=np.int64),
    }


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def _update(spool, name, weights, num_images):
    return Update(name, spool.put(name, pack_weights(weights).data, round_number=1), num_images)


def test_the_average_from_disk_is_the_image_weighted_mean_bit_for_bit(spool):
    updates = [(_weights(seed), count) for seed, count in ((1, 10), (2, 30), (3, 61))]
    spooled = [_update(spool, f"hospital-{index}", *update) for index, update in enumerate(updates)]
    assert same_weights(federated_average(spooled), image_weighted_mean(updates))


def test_integer_counters_stay_integers(spool):
    updates = [
        _update(spool, "a", {"n": np.array(7, dtype=np.int64)}, 1),
        _update(spool, "b", {"n": np.array(10, dtype=np.int64)}, 3),
    ]
    average = federated_average(updates)["n"]
    assert average.dtype == np.int64
    assert average.shape == ()
    assert int(average) == 9  # 9.25 rounded


@given(st.integers(1, 5), st.integers(1, 1000))
def test_the_average_of_equal_models_is_that_model_bit_for_bit(tmp_path_factory, num_hospitals, num_images):
    update = _update(Spool(tmp_path_factory.mktemp("spool")), "a", _weights(4), num_images)
    assert same_weights(federated_average([update] * num_hospitals), _weights(4))


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no update"):
        federated_average([])


def test_admission_and_averaging_take_three_models_of_memory_whatever_the_number_of_hospitals(spool):
    random = np.random.default_rng(0)
    names = [f"layer-{index}.weight" for index in range(8)]
    model_bytes = 8 * 500_000 * 4
    model = spool.put_model(pack_weights({name: np.zeros(500_000, dtype=np.float32) for name in names}).data)
    updates = []
    for index in range(12):
        weights = {name: random.random(500_000, dtype=np.float32) for name in names}
        updates.append(_update(spool, f"hospital-{index:02d}", weights, 10 + index))
        del weights
    peaks = []
    for count in (3, 12):
        tracemalloc.start()
        assert not faults_of_values(
            {update.hospital: update.weights for update in updates[:count]}, model=model, max_norm_ratio=10.0
        ).faults
        federated_average(updates[:count])
        peaks.append(tracemalloc.get_traced_memory()[1] / model_bytes)
        tracemalloc.stop()
    assert max(peaks) < 3.5
    assert abs(peaks[1] - peaks[0]) < 0.1


def test_the_norm_of_an_update_is_that_of_all_its_floating_tensors_together(spool):
    model = spool.put_model(pack_weights(_weights(1)).data)

    def moved(name, by):
        weights = {key: array + by if array.dtype == np.float32 else array + 100 for key, array in _weights(1).items()}
        return spool.put(name, pack_weights(weights).data, round_number=1)

    updates = {"a": moved("a", np.float32(3)), "b": moved("b", np.float32(100)), "c": moved("c", np.float32(3))}
    faults = faults_of_values(updates, model=model, max_norm_ratio=10.0).faults
    assert faults["b"].reason.startswith(f"its update's norm {100 * np.sqrt(12 + 3):.4g} is 33.3 times")


def test_an_update_ten_times_as_long_as_the_others_is_refused_and_the_others_are_not(spool):
    model = spool.put_model(pack_weights(_weights(1)).data)

    def moved(by):
        return {name: array + by if array.dtype == np.float32 else array for name, array in _weights(1).items()}

    spooled = {
        name: spool.put(name, pack_weights(moved(np.float32(by))).data, round_number=1)
        for name, by in (("a", 0.1), ("b", 0.2), ("c", 2.1), ("d", 0.2), ("e", np.float32(3e38)))
    }
    faults = faults_of_values(spooled, model=model, max_norm_ratio=10.0).faults
    assert sorted(faults) == ["c", "e"]
    assert "10.5 times the round's median" in faults["c"].reason
    assert faults["c"].code == REFUSED_NORM


@pytest.fixture
def looked(spool):
    """Looks through updates that move each weight by so much."""
    model = spool.put_model(pack_weights(_weights(1)).data)

    def looked(*moves, earlier_norms=()):
        updates = {}
        for index, by in enumerate(moves):
            moved = {n: a + np.float32(by) if a.dtype == np.float32 else a for n, a in _weights(1).items()}
            updates[f"h{index}"] = spool.put(f"h{index}", pack_weights(moved).data, round_number=1)
        return faults_of_values(updates, model=model, max_norm_ratio=10.0, earlier_norms=earlier_norms)

    return looked


def test_two_updates_are_compared_with_the_runs_earlier_rounds_and_where_there_are_none_with_nothing(looked):
    norm = float(np.sqrt(12 + 3))  # of an update that moves each of the 15 weights by 1
    first = looked(1, 1000)
    assert first.faults == {}
    assert first.norms == pytest.approx({"h0": norm, "h1": 1000 * norm})
    later = looked(1, 1000, earlier_norms=(0.9 * norm, norm, 400 * norm))
    assert list(later.faults) == ["h1"]
    assert "1000.0 times the earlier rounds' median" in later.faults["h1"].reason
    assert later.median_norm == pytest.approx(norm), "what was refused is no yardstick"
    assert list(looked(1000, earlier_norms=(norm,)).faults) == ["h0"], "one alone, too"


def test_updates_that_move_nothing_do_not_switch_the_test_off_for_the_others(looked):
    assert list(looked(0, 0, 0, 0.1, 0.2, 0.3, 100).faults) == ["h6"]
    norm = float(np.sqrt(15))
    assert list(looked(0, 0, 100, earlier_norms=(norm,)).faults) == ["h2"]
    assert looked(0, 0, 0).faults == {}
    assert looked(0, 0, 0).median_norm is None


@pytest.mark.parametrize(
    ("name", "value", "is_refused"),
    [
        ("layer.running_var", -1e-3, True),
        ("layer.running_var", 0.0, False),
        ("layer.weight", -1.0, False),
        ("layer.num_batches_tracked", -1, True),
        ("layer.num_batches_tracked", 2**40 + 1, True),
        ("layer.num_batches_tracked", 2**40, False),
    ],
)
def test_a_negative_variance_and_a_counter_no_training_reaches_are_refused(spool, name, value, is_refused):
    model = spool.put_model(pack_weights(_weights(1)).data)
    poisoned = {key: array.copy() for key, array in _weights(1).items()}
    poisoned[name].flat[-1] = value
    update = spool.put("a", pack_weights(poisoned).data, round_number=1)
    faults = faults_of_values({"a": update}, model=model, max_norm_ratio=10.0).faults
    assert [(key, fault.code) for key, fault in faults.items()] == [("a", REFUSED_VALUES)] * is_refused
    assert all(repr(name) in fault.reason for fault in faults.values())


def test_weights_of_another_size_than_the_models_are_refused_before_anything_is_written(spool, tmp_path):
    spool.put_model(pack_weights(_weights(1)).data)
    large = pack_weights({"layer.weight": np.zeros(40_000, dtype=np.float32)}).data
    with pytest.raises(SpoolError, match=f"{len(large)} bytes"):
        spool.put("a", large, round_number=1)
    assert not (tmp_path / "spool" / "round-1").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", bytes(8), b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}x"]
)
def test_what_is_no_safetensors_file_is_refused_and_leaves_nothing_in_the_spool(content, spool, tmp_path):
    with pytest.raises(SpoolError, match="no safetensors file"):
        spool.put("a", content, round_number=1)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
