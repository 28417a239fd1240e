"""Gradients on the host: sums over ranks that hold the same experts, by replicas in threads that meet at a barrier.

Two replicas must end with the same experts, those of one process that trains on the micro-batches of both.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindpangu.experts import Link, modes, open_experts
from mindpangu.experts.gradients import HostGradients
from mindpangu.parallel.data_parallel import DataGroup
from tests.experts.conftest import DOMAINS, GROUP, LAYERS, open_store, pretend_step, random_plan, state

SECONDS = 60


class Replicas:
    """Sums over threads, one per rank. Every rank must ask for the same slabs in the same order."""

    def __init__(self, size):
        self.size = size
        self.num_sums = 0
        self._barrier = threading.Barrier(size, timeout=SECONDS)
        self._mine = [None] * size

    def all_reduce_of(self, rank):
        def all_reduce(gradients):
            self._mine[rank] = [gradient.copy() for gradient in gradients]
            self._barrier.wait()
            summed = [sum(each[1:], each[0]) for each in zip(*self._mine, strict=True)]
            self.num_sums += rank == 0
            self._barrier.wait()
            return summed

        return all_reduce


MODES = {
    "views": {},
    "staged": {"experts__staging": "true"},
    "no overlap": {"experts__staging": "true", "experts__overlap": "false"},
    "host_full": {"experts__mode": "host_full"},
    "device": {"experts__mode": "device"},
}


@pytest.mark.parametrize("mode", MODES)
def test_replicas_train_like_one_process_with_the_micro_batches_of_both(monkeypatch, mode):
    """Domains of one rank only, of both, and of none: [0, 1] and [1, 3] in the first step, and so on."""
    config, store = open_store(**MODES[mode])
    stores = [open_store(**MODES[mode])[1] for _ in range(2)]
    rng = np.random.default_rng(0)
    domains = [([0, 1], [1, 3]), ([2, 2], [2, 0]), ([3, 1], [0, 2])]
    plans = [[random_plan(rng, store, each) for each in of_ranks] for of_ranks in domains]
    # gradients that do not depend on the other rank's weights: those of the initial ones
    gradients = [
        [pretend_step(plan, slabs_of(store, plan), 10 * step + rank) for rank, plan in enumerate(of_ranks)]
        for step, of_ranks in enumerate(plans)
    ]

    experts = open_experts(store, config, Link(1))
    norms = []
    for of_ranks, their_gradients in zip(plans, gradients, strict=True):
        experts.begin(of_ranks)
        for plan, each in zip(of_ranks, their_gradients, strict=True):
            experts.slabs(plan)
            experts.receive(plan, each)
        norms.append(experts.squared_norm())
        experts.update(0.01, 0.5)
    experts.finish()

    replicas = Replicas(2)
    monkeypatch.setattr(modes, "all_reduce_over", lambda group: replicas.all_reduce_of(group.rank))

    def train(rank):
        ecss = open_experts(stores[rank], config, Link(1), SimpleNamespace(rank=rank, size=2))
        found = []
        for of_ranks, their_gradients in zip(plans, gradients, strict=True):
            plan = replace(of_ranks[rank], replicas=(of_ranks[1 - rank],))
            ecss.begin([plan])
            ecss.slabs(plan)
            ecss.receive(plan, their_gradients[rank])
            found.append(ecss.squared_norm())
            ecss.update(0.01, 0.5)
        ecss.finish()
        return found

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(train, range(2)))

    assert results == [norms, norms]
    for own_store in stores:
        for array, expected in zip(state(own_store), state(store), strict=True):
            np.testing.assert_array_equal(array, expected)
    assert replicas.num_sums == (len(plans) * LAYERS * DOMAINS if mode == "host_full" else activated_slabs(plans))


def activated_slabs(plans):
    """Returns the number of slabs that any rank activates, summed over the steps."""
    slabs = {
        (step, layer, plan.domain_of_slot[slot])
        for step, of_ranks in enumerate(plans)
        for plan in of_ranks
        for layer, slot in np.argwhere(plan.counts_LDA.any(2)).tolist()
    }
    return len(slabs)


def slabs_of(store, plan):
    return [Tensor.from_numpy(slab.copy()) for slab in store.lookup(plan.domain_of_slot)]


def test_reduce_sums_activated_slabs_in_order_and_zeros_for_what_did_not_arrive():
    _, store = open_store()
    gradients = HostGradients(store, Link(1), np.float32)
    plan = random_plan(np.random.default_rng(0), store, [2])
    arrived = [np.full((GROUP, *shape), 7, np.float32) for shape in store.shapes.values()]
    activated_LMA = np.zeros(store.exists_LMA.shape, bool)
    activated_LMA[0, 2, [0, 1]] = True
    activated_LMA[1, 0, 2] = True
    calls = []

    def double(slab):
        calls.append([gradient.copy() for gradient in slab])
        return [2 * gradient for gradient in slab]

    gradients.begin([plan])
    gradients.add(0, 2, np.array([True, False, False]), arrived)
    gradients.reduce(activated_LMA, double)

    assert len(calls) == 2  # layer 0, domain 2; then layer 1, domain 0, of which this rank has nothing
    for gradient in calls[0]:
        assert (gradient[0] == 7).all()
        assert not gradient[1:].any()  # not what an earlier step left in the buffer
    assert not any(gradient.any() for gradient in calls[1])
    assert (gradients.slabs[0, 2][0][0] == 14).all()
    np.testing.assert_array_equal(gradients.received_LMA, activated_LMA)


def test_buffers_are_used_again_in_the_next_step():
    """Without that, every step would take new memory."""
    _, store = open_store()
    gradients = HostGradients(store, Link(1), np.float32)
    plan = random_plan(np.random.default_rng(0), store, [2])
    arrived = [np.ones((GROUP, *shape), np.float32) for shape in store.shapes.values()]
    slabs = []

    for domain in (2, 0, 1):
        gradients.begin([plan])
        gradients.add(0, domain, np.ones(GROUP, bool), arrived)
        slabs.append(gradients.slabs[0, domain])

    for slab in slabs[1:]:
        assert all(np.shares_memory(a, b) for a, b in zip(slab, slabs[0], strict=True))


def test_reduce_does_not_change_gradients_that_are_not_its_own():
    _, store = open_store()
    gradients = HostGradients(store, Link(1))
    plan = random_plan(np.random.default_rng(0), store, [2])
    plan.counts_LDA[:] = 0
    plan.counts_LDA[0, 0, 0] = 1
    arrived = [np.full((GROUP, *shape), 7, np.float32) for shape in store.shapes.values()]
    for array in arrived:
        array.setflags(write=False)  # as arrays of a compiled function may be
    gradients.begin([plan])
    gradients.add(0, 2, plan.counts_LDA[0, 0] > 0, arrived)
    activated_LMA = np.zeros(store.exists_LMA.shape, bool)
    activated_LMA[0, 2, 1] = True
    sums = []

    gradients.reduce(activated_LMA, lambda slab: sums.append([each.copy() for each in slab]) or slab)

    for gradient in sums[0]:
        assert (gradient[0] == 7).all()
        assert not gradient[1:].any()
    assert all((array == 7).all() for array in arrived)


def test_the_sum_over_ranks_is_that_of_the_group_and_is_compiled_for_all_tensors_of_a_slab():
    class TenTimes(nn.Cell):
        def construct(self, x):
            return x * 10

    group = DataGroup("replicas", 0, 2)
    group._all_reduce = TenTimes()
    slab = [np.full((2, 3), 1, np.float32), np.full(4, 2, np.float32)]

    summed = modes.all_reduce_over(group)(slab)

    assert [array.shape for array in summed] == [(2, 3), (4,)]
    assert [array.flat[0] for array in summed] == [10, 20]


@pytest.mark.parametrize(("size", "has_sum"), [(1, False), (2, True)])
@pytest.mark.parametrize("mode", ["host_ecss", "device"])
def test_only_experts_that_other_ranks_hold_too_are_summed(monkeypatch, mode, size, has_sum):
    monkeypatch.setattr(modes, "all_reduce_over", lambda group: "the sum")
    config, store = open_store(experts__mode=mode)

    experts = open_experts(store, config, replicas=SimpleNamespace(size=size))

    assert experts._all_reduce == ("the sum" if has_sum else None)
    assert open_experts(store, config)._all_reduce is None
