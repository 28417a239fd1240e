"""The order of the samples: keyed permutations, epochs, and reproducibility."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data.shuffle import _CHUNK, SampleOrder, permuted

keys = st.integers(0, 2**64 - 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), keys)
def test_permuted_is_a_permutation_of_every_size(size, key):
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(st.integers(2**33, 2**61), keys, st.data())
def test_an_index_maps_to_the_same_value_alone_and_among_others_even_in_huge_sizes(size, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20, unique=True)))

    together = permuted(index, size, key)

    assert together.dtype == np.int64
    assert ((together >= 0) & (together < size)).all()
    assert len(set(together.tolist())) == len(index)
    assert together.tolist() == [permuted(index[i : i + 1], size, key)[0] for i in range(len(index))]


def test_keys_and_neighbours_are_unrelated():
    size = 10_007
    positions = np.arange(size)

    orders = np.stack([permuted(positions, size, key) for key in range(8)])

    # Two independent permutations agree in 1 position on average; 12 is virtually impossible (Poisson, p < 1e-9).
    for a in range(8):
        assert (orders[a] == positions).sum() < 12
        for b in range(a):
            assert (orders[a] == orders[b]).sum() < 12
    # The correlation of an index with its image, and of consecutive images, is within 5 / sqrt(size) of 0.
    for order in orders:
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_every_order_of_three_occurs_about_equally_often():
    seen = [tuple(permuted(np.arange(3), 3, key)) for key in range(3000)]

    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 6
    assert min(counts) > 300


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    with pytest.raises(ValueError, match=r"not all in \[0, 5\)"):
        permuted(np.array([index]), 5, 0)


def test_the_permutation_does_not_change_between_versions():
    # A resumed run must get the same samples: these numbers are part of the checkpoint format.
    assert permuted(np.arange(10), 10, 42).tolist() == [1, 9, 6, 0, 2, 7, 5, 4, 8, 3]
    # across an epoch, and across a chunk of an epoch
    assert SampleOrder(1000, 3, "zh").indices(995, 10).tolist() == [863, 643, 504, 489, 199, 586, 239, 180, 693, 7]
    assert SampleOrder(2500, 3, "zh").indices(1020, 8).tolist() == [1046, 281, 92, 866, 2364, 785, 2018, 1159]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2500), st.integers(0, 5000), st.integers(1, 40))
def test_sample_order_gives_whole_epochs_from_any_position(size, first, count):
    order = SampleOrder(size, seed=3, name="en")

    indices = order.indices(first, count)
    epoch = order.indices(first // size * size, size)

    assert indices.tolist() == [SampleOrder(size, 3, "en").indices(first + i, 1)[0] for i in range(count)]
    assert sorted(epoch) == list(range(size))
    assert set(indices[: size - first % size].tolist()) <= set(epoch[first % size :].tolist())


def test_epochs_seeds_and_domains_differ():
    size = 2 * _CHUNK

    base = SampleOrder(size, 0, "en").indices(0, 2 * size)

    assert (base[:size] != base[size:]).mean() > 0.99
    assert (base[:size] != SampleOrder(size, 1, "en").indices(0, size)).mean() > 0.99
    assert (base[:size] != SampleOrder(size, 0, "zh").indices(0, size)).mean() > 0.99
