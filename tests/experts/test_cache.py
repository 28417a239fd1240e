"""ExpertCache: which experts are read, which are replaced, and what the pool holds afterwards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import ModelConfig
from mindpangu.errors import CheckpointError, ExpertStoreError
from mindpangu.experts import ExpertCache, entries_within
from mindpangu.model.initialization import network_tensors

SLAB_TENSORS = network_tensors(ModelConfig())

SHAPES = {"up": (2, 3), "up_bias": (3,), "down": (3, 2), "down_bias": (2,)}


def value_of(layer, domain, index):
    return float(100 * layer + 10 * domain + index)


def open_cache(num_entries, layers=2, dtype=np.float32):
    """Returns a cache of experts filled with `value_of`, and the growing list of the experts that it has read."""
    reads = []

    def read(layer, domain, index):
        reads.append((layer, domain, index))
        return {name: np.full(shape, value_of(layer, domain, index), np.float32) for name, shape in SHAPES.items()}

    return ExpertCache(layers, SHAPES, num_entries, read, dtype), reads


def request(cache, layer, *experts):
    """Returns the entries of experts, given as (domain id, index)."""
    return cache.entries(layer, *np.array(experts).T)


def test_an_expert_is_read_once_and_stays():
    cache, reads = open_cache(3)

    first = request(cache, 1, (0, 1), (2, 0), (0, 1))
    np.testing.assert_array_equal(request(cache, 1, (0, 1), (2, 0), (0, 1)), first)

    assert reads == [(1, 0, 1), (1, 2, 0)]
    assert (first.dtype, cache.fetched, cache.version_L.tolist()) == (np.int32, 2, [0, 2])
    for tensor in cache.pool(1):
        assert (tensor[first[1]] == value_of(1, 2, 0)).all()
    assert [tensor.shape[1:] for tensor in cache.pool(0)] == [SHAPES[name] for name in SLAB_TENSORS]


def test_the_least_recently_used_expert_makes_room():
    cache, reads = open_cache(2)

    for expert in ((0, 0), (0, 1), (0, 0), (0, 2)):  # 1 was used before 0
        request(cache, 0, expert)
    assert reads[-1] == (0, 0, 2)

    request(cache, 0, (0, 0))
    assert len(reads) == 3
    request(cache, 0, (0, 1))
    assert len(reads) == 4


def test_more_experts_than_entries_are_refused():
    cache, _ = open_cache(2)

    with pytest.raises(ExpertStoreError, match="3 experts are needed at once; a layer has room for 2"):
        request(cache, 0, (0, 0), (0, 1), (1, 0))


def test_experts_with_the_highest_indices_are_not_taken_for_those_of_another_domain():
    cache, reads = open_cache(3)

    entries = request(cache, 0, (0, 65535), (1, 0), (1, 32767))

    assert reads == [(0, 0, 65535), (0, 1, 0), (0, 1, 32767)]
    assert [cache.pool(0)[0][entry].flat[0] for entry in entries] == [value_of(*expert) for expert in reads]


def test_pools_that_do_not_fit_into_memory_are_refused():
    with pytest.raises(ExpertStoreError, match=f"{1 << 50} experts per layer do not fit: .*; set --expert-memory"):
        open_cache(1 << 50)


def test_a_read_that_fails_leaves_a_pool_that_works():
    cache, _ = open_cache(2)
    request(cache, 0, (0, 0), (0, 1))
    working = cache._read

    def fail(*expert):
        raise CheckpointError("altered")

    cache._read = fail
    with pytest.raises(CheckpointError):
        request(cache, 0, (1, 0))
    cache._read = working

    (entry,) = request(cache, 0, (0, 1))
    assert (cache.pool(0)[0][entry] == value_of(0, 0, 1)).all()


def test_experts_are_rounded_to_the_dtype_of_the_computation():
    cache, _ = open_cache(1, dtype=np.float16)

    request(cache, 0, (3, 7))

    assert {tensor.dtype for tensor in cache.pool(0)} == {np.dtype(np.float16)}


@given(
    num_entries=st.integers(3, 6),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=3), min_size=1, max_size=20
    ),
)
def test_only_the_least_recently_used_experts_leave(num_entries, batches):
    cache, reads = open_cache(num_entries, layers=1)
    used = {}  # expert that was read → when it was used last
    for now, batch in enumerate(batches):
        before = len(reads)
        entries = request(cache, 0, *batch)
        read = {(domain, index) for _, domain, index in reads[before:]}
        assert read <= set(batch)
        assert len(reads) - before == len(read)
        # experts read again must have been among the least recently used
        stayed = sorted(used, key=used.get, reverse=True)[:num_entries]
        assert all(used[expert] <= used[stayed[-1]] for expert in read if expert in used)
        assert read >= {expert for expert in batch if expert not in used}
        used |= dict.fromkeys(batch, now)
        for entry, (domain, index) in zip(entries, batch, strict=True):
            assert (cache.pool(0)[0][entry] == value_of(0, domain, index)).all()


def test_number_of_entries_that_fit_a_memory():
    one = 4 * (6 + 3 + 6 + 2)

    assert entries_within(10 * 2 * one, 2, SHAPES, least=3, itemsize=4) == 10
    assert entries_within(10 * 2 * one, 2, SHAPES, least=3, itemsize=2) == 20
    assert entries_within(3 * 2 * one, 2, SHAPES, least=3, itemsize=4) == 3
    with pytest.raises(ExpertStoreError, match=r"hold 2 experts in each of 2 RRE layers; 3 may be needed"):
        entries_within(3 * 2 * one - 1, 2, SHAPES, least=3, itemsize=4)
