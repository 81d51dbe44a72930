"""Which images form a batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn.errors import ModelError
from aecnn.training.batches import Batching
from aecnn.training.seeds import derive_seed


def _batches(batching, num_rows, seed=0):
    return list(batching.batches(np.arange(num_rows), np.random.default_rng(seed)))


@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 3))
def test_each_pass_sees_every_image_once_in_batches_large_enough(num_rows, batch_size, epochs):
    batching = Batching(batch_size=batch_size, min_batch_size=2, epochs=epochs, steps=None)
    batches = _batches(batching, num_rows)
    assert len(batches) == batching.num_steps(num_rows)
    assert sorted(np.concatenate(batches)) == sorted(list(range(num_rows)) * epochs)
    assert all(2 <= batch.size <= batch_size + 1 for batch in batches)
    assert all((np.diff(batch) > 0).all() for batch in batches)


@given(st.integers(2, 30), st.integers(2, 9), st.integers(1, 40))
def test_a_number_of_steps_is_kept_whatever_the_number_of_images(num_rows, batch_size, steps):
    batching = Batching(batch_size=batch_size, min_batch_size=2, epochs=None, steps=steps)
    assert len(_batches(batching, num_rows)) == steps == batching.num_steps(num_rows)


def test_a_last_batch_of_one_is_merged_only_where_normalisation_needs_more():
    sizes = [batch.size for batch in _batches(Batching(4, 2, epochs=1, steps=None), 9)]
    assert sizes == [4, 5]
    sizes = [batch.size for batch in _batches(Batching(4, 1, epochs=1, steps=None), 9)]
    assert sizes == [4, 4, 1]


def test_passes_are_shuffled_differently_and_the_seed_decides():
    batching = Batching(8, 1, epochs=2, steps=None)
    first, second = np.split(np.array(_batches(batching, 8)), 2)
    assert first.tolist() == second.tolist()  # one whole batch, sorted
    batching = Batching(4, 1, epochs=2, steps=None)
    one, two = _batches(batching, 16, seed=1), _batches(batching, 16, seed=1)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert [b.tolist() for b in one[:4]] != [b.tolist() for b in one[4:]]


def test_too_few_images_for_the_normalisation_are_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"1 training image\(s\).*group"):
        _batches(Batching(8, 2, epochs=1, steps=None), 1)
    with pytest.raises(ModelError, match="batch_size is 1"):
        _batches(Batching(1, 2, epochs=1, steps=None), 5)


def test_seeds_differ_by_hospital_and_round_and_never_by_order():
    seeds = {derive_seed(7, name, number) for name in ("a", "b", "ab") for number in range(50)}
    assert len(seeds) == 150
    assert derive_seed(7, "a", 12) != derive_seed(7, "a1", 2)
    assert derive_seed(7, "a", 1) == 3139270254706233798  # other machines, other versions: the same
