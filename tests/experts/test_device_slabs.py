"""Buffers of staged experts: who has one, and that they are used again."""

import numpy as np

from mindpangu.experts import Link
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from tests.experts.conftest import LAYERS, open_store


def arrays(slabs, domain):
    return [tensor.asnumpy() for tensor in slabs.lookup((domain,))]


def are_same_memory(one, other):
    return all(np.shares_memory(a, b) for a, b in zip(one, other, strict=True))


def test_a_domain_takes_the_buffers_of_one_that_is_not_needed():
    """Without that, every change of domains would take new memory on the device."""
    _, store = open_store()
    slabs = StagedSlabs(store, Link(1))
    slabs.reserve({0, 1})
    kept = arrays(slabs, 1)
    free = arrays(slabs, 0)

    slabs.reserve({1, 2})

    assert are_same_memory(arrays(slabs, 1), kept)
    assert are_same_memory(arrays(slabs, 2), free)


def test_slabs_come_by_layer_slot_and_tensor():
    _, store = open_store()
    slabs = StagedSlabs(store, Link(1))
    slabs.reserve({0, 2})

    moved = slabs.fetch(store.exists_LMA & np.isin(np.arange(4), (0, 2))[:, None])

    found = slabs.lookup((2, 0))
    expected = store.lookup((2, 0))
    assert len(found) == len(expected) == LAYERS * 2 * len(store.tensors)
    for tensor, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(tensor.asnumpy(), array)
    assert moved == sum(array.nbytes for array in expected)


def test_experts_that_are_not_fetched_keep_their_older_values():
    _, store = open_store()
    slabs = StagedSlabs(store, Link(1))
    slabs.reserve({0})
    slabs.fetch(store.exists_LMA & (np.arange(4) == 0)[:, None])
    before = store.weights[1][0]["up"].copy()
    store.weights[1][0]["up"] += 1
    second_LMA = np.zeros_like(store.exists_LMA)
    second_LMA[1, 0, 1] = True

    slabs.fetch(second_LMA)

    (found,) = [tensor.asnumpy() for tensor in slabs.lookup((0,))][len(store.tensors) :][:1]
    np.testing.assert_array_equal(found[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(found[1], before[1] + 1)


def test_views_ask_the_store_to_have_their_experts_ready():
    """A mapped store then reads them ahead."""
    _, store = open_store()
    asked = []
    store.will_need = asked.append
    needed_LMA = np.zeros_like(store.exists_LMA)
    needed_LMA[1, 0, 1] = True

    moved = StoreViews(store).fetch(needed_LMA)

    assert moved == 0
    np.testing.assert_array_equal(asked, [needed_LMA])
