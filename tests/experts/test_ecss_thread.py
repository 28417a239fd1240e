"""ECSS's thread: what runs in it, what the training thread waits for, and what it does not wait for.

A gate closes the link or the store's update: work that arrives there waits until the test opens the gate. So a call
that returns while the gate is closed did not wait for the work, and no test depends on how long anything takes.
"""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.errors import ExpertStoreError
from mindpangu.experts import Link, ecss, open_experts
from tests.experts.conftest import open_store, pretend_step, random_plan

SECONDS = 30
"""How long a test waits for what must happen; only a test that fails needs it."""
INSTANT = 0.2
"""How long the thread lets the training thread do what it must not do."""


class Gate:
    """Lets work through while it is open, and records the threads that came."""

    def __init__(self):
        self.threads = []
        self.arrived = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def close(self):
        self._open.clear()
        self.arrived.clear()

    def open(self):
        self._open.set()

    def pass_through(self):
        self.threads.append(threading.current_thread())
        self.arrived.set()
        if self._open.is_set():
            return
        assert threading.current_thread() is not threading.main_thread(), "the training thread does the thread's work"
        assert self._open.wait(SECONDS), "the test has not opened the gate"


class GatedLink(Link):
    def __init__(self, gate):
        super().__init__(1)
        self.gate = gate

    def _move(self, operation, pairs):
        if pairs:
            self.gate.pass_through()
        return super()._move(operation, pairs)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()  # a test that failed must not leave a thread that waits


WORK_OF_A_STEP = 1 + 2 + 1
"""A fetch, the gradients of one slab in two layers, an update."""


def open_gated(gate, **settings):
    """Returns (store, experts), by default with staged slabs; copies and updates go through the gate."""
    config, store = open_store(**{"experts__staging": "true"} | settings)
    update = store.update

    def gated_update(*arguments):
        gate.pass_through()
        return update(*arguments)

    store.update = gated_update
    return store, open_experts(store, config, GatedLink(gate))


def plan_of(store, domain, seed=0):
    """Returns a plan in which every expert of a domain has tokens."""
    plan = random_plan(np.random.default_rng(seed), store, [domain])
    plan.counts_LDA[:] = store.exists_LMA[:, [domain]]
    return plan


def run_step(experts, plan, upcoming=None):
    experts.begin([plan], upcoming)
    experts.receive(plan, pretend_step(plan, experts.slabs(plan), 0))
    experts.squared_norm()
    experts.update(0.01, 1.0)


def test_with_overlap_the_thread_does_all_work(gate):
    store, experts = open_gated(gate)

    run_step(experts, plan_of(store, 0))
    experts.finish()

    assert len(gate.threads) == WORK_OF_A_STEP
    assert {thread.name.rpartition("_")[0] for thread in gate.threads} == {"ecss"}
    assert len(set(gate.threads)) == 1


def test_without_overlap_the_training_thread_does_all_work(gate):
    store, experts = open_gated(gate, experts__overlap="false")

    run_step(experts, plan_of(store, 0))

    assert len(gate.threads) == WORK_OF_A_STEP
    assert set(gate.threads) == {threading.main_thread()}
    assert (store.step_counts[:, 0] == 1).all()  # before `finish`


def test_begin_does_not_wait_for_the_experts(gate):
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    gate.close()

    experts.begin([plan])

    assert gate.arrived.wait(SECONDS)
    gate.open()
    np.testing.assert_array_equal(experts.slabs(plan)[0].asnumpy(), store.weights[0][0]["up"])


def test_slabs_wait_for_the_experts(gate):
    """The link holds the experts back until `slabs` has returned, or a moment has passed without that."""
    store, experts = open_gated(gate)
    returned = threading.Event()
    returned_too_early = []
    gate.pass_through = lambda: returned_too_early.append(returned.wait(INSTANT))
    plan = plan_of(store, 0)

    experts.begin([plan])
    experts.slabs(plan)
    returned.set()
    experts.finish()

    assert returned_too_early == [False]


def test_slabs_wait_for_experts_that_were_fetched_ahead(gate):
    store, experts = open_gated(gate)
    first = plan_of(store, 0)
    upcoming = [plan_of(store, 1)]
    run_step(experts, first, upcoming)
    experts.finish()
    copies = len(gate.threads)

    experts.begin(upcoming)
    slabs = experts.slabs(upcoming[0])
    experts.finish()

    assert len(gate.threads) == copies  # nothing was left to fetch
    np.testing.assert_array_equal(slabs[0].asnumpy(), store.weights[0][1]["up"])


def test_slabs_do_not_wait_for_the_experts_of_the_next_step(gate):
    """The link holds the second fetch back until the slabs are there."""
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    fetches = []
    slabs_are_there = threading.Event()

    def hold_the_second():
        fetches.append(0)
        assert len(fetches) == 1 or slabs_are_there.wait(SECONDS)

    gate.pass_through = hold_the_second

    experts.begin([plan], [plan_of(store, 1)])
    slabs = experts.slabs(plan)
    slabs_are_there.set()
    experts.finish()

    assert len(fetches) == 2
    np.testing.assert_array_equal(slabs[0].asnumpy(), store.weights[0][0]["up"])


def test_slabs_of_a_step_that_was_not_announced_wait_for_their_buffers(gate):
    """The step has a slot without tokens, so nothing is fetched for it. An update keeps the thread busy."""
    store, experts = open_gated(gate)
    first = plan_of(store, 0)
    other = plan_of(store, 2)
    other.counts_LDA[:] = 0
    experts.begin([first], [plan_of(store, 1)])
    experts.receive(first, pretend_step(first, experts.slabs(first), 0))
    experts.squared_norm()
    is_busy = threading.Event()
    gate.pass_through = lambda: is_busy.wait(INSTANT)

    experts.update(0.01, 1.0)
    experts.begin([other])

    assert len(experts.slabs(other)) == len(store.lookup((2,)))


def test_gradients_move_to_the_host_while_the_device_computes(gate):
    """`receive` returns at once, and the copy begins before anything asks for the norm."""
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    experts.begin([plan])
    slabs = experts.slabs(plan)
    experts.finish()
    gate.close()

    experts.receive(plan, pretend_step(plan, slabs, 0))

    assert gate.arrived.wait(SECONDS)
    gate.open()
    assert experts.squared_norm() > 0


def test_gradients_of_an_earlier_micro_batch_move_too(gate):
    """They do not wait for the slabs of the next one, which the training thread asks for after lower_backward."""
    store, experts = open_gated(gate)
    first = plan_of(store, 0)
    second = plan_of(store, 0, seed=1)
    experts.begin([first, second])
    slabs = experts.slabs(first)
    experts.finish()
    gate.close()

    experts.receive(first, pretend_step(first, slabs, 0))

    assert gate.arrived.wait(SECONDS)
    gate.open()
    experts.receive(second, pretend_step(second, experts.slabs(second), 1))
    assert experts.squared_norm() > 0


def test_gradients_in_host_memory_are_read_when_the_next_micro_batch_needs_its_experts(gate):
    """Reading them earlier would wait for lower_backward, which the device is still computing."""
    store, experts = open_gated(gate, experts__staging="false")
    norms = []
    squared_norm = store.squared_norm
    store.squared_norm = lambda *arguments: norms.append(0) or squared_norm(*arguments)
    plans = [plan_of(store, 0, seed) for seed in range(2)]
    experts.begin(plans)

    def receive(position):
        gradients = pretend_step(plans[position], experts.slabs(plans[position]), position)
        experts.finish()
        read_before = len(gate.threads)
        experts.receive(plans[position], gradients)
        experts.finish()
        return read_before, len(gate.threads)

    read = [receive(position) for position in range(2)]

    assert read == [(0, 0), (2, 2)]  # the first one's gradients of the slab in two layers
    assert not norms
    assert experts.squared_norm() > 0
    assert len(gate.threads) == 4


def test_gradients_are_complete_when_they_are_returned(gate):
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    experts.begin([plan])
    gradients = pretend_step(plan, experts.slabs(plan), 0)
    experts.finish()
    returned = threading.Event()
    returned_too_early = []
    gate.pass_through = lambda: returned_too_early.append(returned.wait(INSTANT))

    experts.receive(plan, gradients)
    found = experts.gradients()
    returned.set()

    assert returned_too_early == [False, False]
    np.testing.assert_array_equal(found[1, 0][3], gradients[7].asnumpy())


def test_the_norm_waits_for_the_gradients(gate):
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    experts.begin([plan])
    slabs = experts.slabs(plan)
    gradients = pretend_step(plan, slabs, 0)
    returned = threading.Event()
    returned_too_early = []
    experts.finish()
    gate.pass_through = lambda: returned_too_early.append(returned.wait(INSTANT))

    experts.receive(plan, gradients)
    squared_norm = experts.squared_norm()
    returned.set()

    assert returned_too_early == [False, False]
    wanted = sum(float((gradient.asnumpy().astype(np.float64) ** 2).sum()) for gradient in gradients)
    assert squared_norm == pytest.approx(wanted, rel=1e-6)


def test_the_update_runs_under_the_next_step_and_its_experts_move_after_it(gate):
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    run_step(experts, plan)
    experts.finish()
    before = store.weights[0][0]["up"].copy()
    experts.begin([plan])
    experts.receive(plan, pretend_step(plan, experts.slabs(plan), 1))
    experts.squared_norm()
    gate.close()

    experts.update(0.01, 1.0)
    experts.begin([plan])

    assert gate.arrived.wait(SECONDS)
    np.testing.assert_array_equal(store.weights[0][0]["up"], before)  # `update` and `begin` returned before the update
    gate.open()
    slabs = experts.slabs(plan)
    assert not np.array_equal(store.weights[0][0]["up"], before)
    np.testing.assert_array_equal(slabs[0].asnumpy(), store.weights[0][0]["up"])


def test_finish_waits_for_the_update(gate):
    store, experts = open_gated(gate)
    returned = threading.Event()
    returned_too_early = []
    plan = plan_of(store, 0)
    experts.begin([plan])
    experts.receive(plan, pretend_step(plan, experts.slabs(plan), 0))
    experts.squared_norm()
    gate.pass_through = lambda: returned_too_early.append(returned.wait(INSTANT))

    experts.update(0.01, 1.0)
    experts.finish()
    returned.set()

    assert returned_too_early == [False]
    assert (store.step_counts[:, 0] == 1).all()


def test_an_error_in_the_thread_is_raised_by_the_next_step(gate):
    store, experts = open_gated(gate)
    plan = plan_of(store, 0)
    run_step(experts, plan)
    experts.finish()

    def fail(*arguments):
        raise ExpertStoreError("the update failed")

    store.update = fail
    run_step(experts, plan)
    with pytest.raises(ExpertStoreError, match="the update failed"):
        experts.finish()
    experts.begin([plan])  # an error is raised once

    run_step(experts, plan)
    experts._thread.shutdown(wait=True)
    with pytest.raises(ExpertStoreError, match="the update failed"):
        experts.begin([plan])


def test_without_overlap_an_error_is_raised_too(gate):
    store, experts = open_gated(gate, experts__overlap="false")

    def fail(*arguments):
        raise ExpertStoreError("the update failed")

    store.update = fail
    run_step(experts, plan_of(store, 0))

    with pytest.raises(ExpertStoreError, match="the update failed"):
        experts.finish()


def test_work_is_counted_as_the_cost_of_the_step_that_it_belongs_to(gate):
    """With overlap, the experts that are fetched ahead and the update belong to the step in which they run."""
    store, experts = open_gated(gate)
    first = plan_of(store, 0)
    upcoming = [plan_of(store, 1)]
    num_bytes = sum(4 * int(np.prod(shape)) for shape in store.shapes.values())

    run_step(experts, first, upcoming)
    one = experts.traffic
    experts.begin(upcoming)
    experts.slabs(upcoming[0])
    experts.finish()
    other = experts.traffic

    assert one is not other
    assert one.bytes_to_device == 2 * 3 * num_bytes
    assert other.bytes_to_device == 2 * store.domains[1].num_experts * num_bytes
    assert one.update_s == 0
    assert other.update_s > 0


class Clock:
    """A clock that stands still until work moves it; the training thread's next look at it can be awaited."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.looked = threading.Event()
        self.is_awaited = False
        monkeypatch.setattr(ecss, "time", SimpleNamespace(perf_counter=self.look))

    def look(self):
        if self.is_awaited and threading.current_thread() is threading.main_thread():
            self.looked.set()
        return self.now

    def move_after_the_next_look(self):
        assert self.looked.wait(SECONDS)
        self.now += 5


def test_without_overlap_the_training_thread_waits_for_all_work(gate, monkeypatch):
    store, experts = open_gated(gate, experts__overlap="false")
    clock = Clock(monkeypatch)
    costs = iter([3, 5, 7, 11])  # the fetch, the gradients of the slab in two layers, the update

    def work():
        clock.now += next(costs)

    gate.pass_through = work

    run_step(experts, plan_of(store, 0))

    assert experts.traffic.lookup_s == 3
    assert experts.traffic.update_s == 11
    assert experts.traffic.wait_s == 3 + 5 + 7 + 11


def test_with_overlap_the_training_thread_waits_only_for_what_it_needs(gate, monkeypatch):
    store, experts = open_gated(gate)
    clock = Clock(monkeypatch)
    plan = plan_of(store, 0)
    gate.pass_through = clock.move_after_the_next_look
    experts.begin([plan])

    clock.is_awaited = True
    experts.slabs(plan)

    assert experts.traffic.wait_s == 5
    assert experts.traffic.lookup_s == 5


def test_with_overlap_an_update_is_a_cost_of_the_step_under_which_it_runs(gate, monkeypatch):
    store, experts = open_gated(gate)
    clock = Clock(monkeypatch)
    clock.is_awaited = True
    plan = plan_of(store, 0)
    run_step(experts, plan)
    experts.finish()
    gate.pass_through = clock.move_after_the_next_look

    experts.update(0.01, 1.0)
    experts.finish()

    assert experts.traffic.update_s == 0
    gate.pass_through = lambda: None
    experts.begin([plan])
    assert experts.traffic.update_s == 5
