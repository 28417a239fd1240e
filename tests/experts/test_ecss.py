"""ECSS: the result equals that of experts that never move, and exactly the planned bytes move."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from mindpangu.errors import ExpertStoreError
from mindpangu.experts import Link, open_experts
from tests.experts.conftest import DOMAINS, open_store, pretend_step, random_plan, run_steps, state

VARIANTS = {
    "views": {},
    "staged": {"experts__staging": "true"},
    "staged, fp16": {"context__precision": "fp16"},
    "views, no overlap": {"experts__overlap": "false"},
    "staged, no overlap": {"experts__staging": "true", "experts__overlap": "false"},
}


class SlowLink(Link):
    """A link with random delays, so that missing waits become visible."""

    def __init__(self, seed):
        super().__init__(2)
        self._rng = np.random.default_rng(seed)

    def _move(self, operation, pairs):
        time.sleep(self._rng.choice([0, 0, 0.002]))
        moved = super()._move(operation, pairs)
        time.sleep(self._rng.choice([0, 0, 0.002]))
        return moved


@st.composite
def schedules(draw):
    """Draws a seed, and for each step the domains of its micro-batches' slots: repeated, duplicated, overlapping."""
    num_slots = draw(st.integers(1, 3))
    micro_batch = st.lists(st.integers(0, DOMAINS - 1), min_size=num_slots, max_size=num_slots)
    return draw(st.integers(0, 1000)), draw(st.lists(st.lists(micro_batch, min_size=1, max_size=3), min_size=2))


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.slow if "no overlap" in name else ()) for name in VARIANTS]
)
@settings(max_examples=25, deadline=None)
@given(schedules(), st.sampled_from([None, 1, 2]))
def test_ecss_equals_experts_that_never_move(variant, schedule, announced):
    seed, domains = schedule
    precision = {key: value for key, value in VARIANTS[variant].items() if key == "context__precision"}
    config, store = open_store(experts__mode="device", **precision)
    rng = np.random.default_rng(seed)
    steps = [[random_plan(rng, store, each) for each in step] for step in domains]
    skipped = set(rng.integers(0, len(steps), 1).tolist())
    expected = run_steps(config, store, steps, skipped=skipped)

    config, store = open_store(**VARIANTS[variant])
    norms, _, final = run_steps(config, store, steps, announced, SlowLink(seed), skipped)

    assert norms == expected[0]
    for array, other_array in zip(final, expected[2], strict=True):
        np.testing.assert_array_equal(array, other_array)


def expert_bytes(store):
    return sum(4 * int(np.prod(shape)) for shape in store.shapes.values())


@settings(max_examples=10, deadline=None)
@given(schedules())
def test_exactly_the_planned_bytes_move(schedule):
    """An expert moves to the device once per step, and to the host once for every slot that used it."""
    seed, domains = schedule
    config, store = open_store(experts__staging="true")
    rng = np.random.default_rng(seed)
    steps = [[random_plan(rng, store, each) for each in step] for step in domains]

    _, traffics, _ = run_steps(config, store, steps)

    for plans, traffic in zip(steps, traffics, strict=True):
        used = {
            (layer, plan.domain_of_slot[slot], expert)
            for plan in plans
            for layer, slot, expert in np.argwhere(plan.counts_LDA).tolist()
        }
        assert traffic.activated == len(used)
        assert traffic.bytes_to_device == len(used) * expert_bytes(store)
        assert traffic.bytes_to_host == sum(int((plan.counts_LDA > 0).sum()) for plan in plans) * expert_bytes(store)


def test_host_full_moves_and_updates_every_expert():
    config, store = open_store(experts__mode="host_full")
    rng = np.random.default_rng(0)
    steps = [[random_plan(rng, store, [0, 1])], [random_plan(rng, store, [1, 3])]]

    norms, traffics, _ = run_steps(config, store, steps)

    num_experts = 2 * (3 + 2 + 3 + 3)
    for traffic in traffics:
        assert traffic.bytes_to_device == traffic.bytes_to_host == num_experts * expert_bytes(store)
    assert (store.step_counts[store.exists_LMA] == 2).all()
    assert (store.step_counts[~store.exists_LMA] == 0).all()

    # an expert without tokens decays, and its moments with it; ECSS leaves it alone
    config, twin = open_store()
    assert run_steps(config, twin, steps)[0][0] == norms[0]
    idle = 2
    assert (twin.step_counts[:, idle] == 0).all()
    np.testing.assert_allclose(store.weights[0][idle]["up"], (1 - 0.01 * 0.1) ** 2 * twin.weights[0][idle]["up"], 1e-6)


def test_modes_agree_where_every_expert_receives_tokens():
    results = []
    for mode in ("device", "host_full", "host_ecss"):
        config, store = open_store(experts__mode=mode)
        plan = random_plan(np.random.default_rng(0), store, range(DOMAINS))
        plan.counts_LDA[:] = store.exists_LMA
        results.append(run_steps(config, store, [[plan]] * 3))

    for norms, _, final in results[1:]:
        assert norms == results[0][0]
        for array, other_array in zip(final, results[0][2], strict=True):
            np.testing.assert_array_equal(array, other_array)


def test_untouched_experts_are_fetched_ahead_and_touched_ones_after_their_update():
    """Alternating domains: every fetch but the first happens in the previous step. Repeated domains: none does."""
    events = []

    class Recorder(Link):
        def copy(self, pairs):
            events.append(("copy", sum(target.nbytes for target, _ in pairs)))
            return super().copy(pairs)

    config, store = open_store(experts__staging="true", experts__overlap="false")
    update = store.update
    store.update = lambda *arguments: events.append(("update", 0)) or update(*arguments)
    rng = np.random.default_rng(1)
    one, other = (random_plan(rng, store, [domain]) for domain in (0, 2))
    one.counts_LDA[:] = 0
    one.counts_LDA[:, 0, 1] = 4
    other.counts_LDA[:] = 1
    sizes = [int((plan.counts_LDA > 0).sum()) * expert_bytes(store) for plan in (one, other)]

    run_steps(config, store, [[one], [other], [other]], link=Recorder(1))

    # gradients are copied slab by slab, fetches in one call, so their sizes tell them apart
    fetches = [event for event in events if event[0] == "update" or event[1] in sizes]
    assert fetches == [
        ("copy", sizes[0]),
        ("copy", sizes[1]),
        ("update", 0),
        ("update", 0),
        ("copy", sizes[1]),
        ("update", 0),
    ]


def test_gradients_in_host_memory_are_used_in_place():
    config, store = open_store()
    experts = open_experts(store, config)
    plan = random_plan(np.random.default_rng(0), store, [0, 2])
    plan.counts_LDA[:] = 1

    for position in range(2):
        experts.begin([plan])
        tensors = pretend_step(plan, experts.slabs(plan), position)
        experts.receive(plan, tensors)
        gradient = experts.gradients()[0, 2][0]
        assert np.shares_memory(gradient, tensors[4].asnumpy())  # layer 0, slot 1, the first of four


def test_experts_that_are_not_fetched_have_rows_but_are_not_read():
    config, store = open_store(experts__staging="true")
    plan = random_plan(np.random.default_rng(0), store, [0])
    plan.counts_LDA[:] = 0
    plan.counts_LDA[:, 0, 1] = 5
    for layer in store.weights:
        layer[0]["up"][[0, 2]] = np.nan  # would show in the norm, if it moved
    experts = open_experts(store, config)

    experts.begin([plan])
    slabs = [slab.asnumpy() for slab in experts.slabs(plan)]
    assert np.isfinite(slabs[0]).all()
    assert not slabs[0][[0, 2]].any()
    np.testing.assert_array_equal(slabs[0][1], store.weights[0][0]["up"][1])

    gradients = [np.full_like(slab, np.nan) for slab in slabs]
    for gradient in gradients:
        gradient[1] = 2
    experts.receive(plan, [Tensor.from_numpy(gradient) for gradient in gradients])
    assert experts.squared_norm() == 2 * 4 * expert_bytes(store) / 4


def test_the_norm_is_computed_as_soon_as_the_last_gradients_have_arrived():
    """It must not wait for the call of squared_norm: by then lower_backward, which should hide it, has ended."""
    config, store = open_store(experts__staging="true")
    experts = open_experts(store, config)
    calls = []
    squared_norm = store.squared_norm
    store.squared_norm = lambda *arguments: calls.append(0) or squared_norm(*arguments)
    rng = np.random.default_rng(0)
    plans = [random_plan(rng, store, [0]), random_plan(rng, store, [0])]

    experts.begin(plans)
    for position, plan in enumerate(plans):
        experts.receive(plan, pretend_step(plan, experts.slabs(plan), position))
        experts.finish()
        assert len(calls) == position

    assert experts.squared_norm() > 0
    assert len(calls) == 1


def test_an_error_in_the_thread_reaches_the_training_thread():
    config, store = open_store(experts__staging="true")
    experts = open_experts(store, config)
    plan = random_plan(np.random.default_rng(0), store, [0])
    experts.begin([plan])
    experts.receive(plan, pretend_step(plan, experts.slabs(plan), 0))
    experts.squared_norm()

    def fail(*arguments):
        raise ExpertStoreError("the update failed")

    store.update = fail

    experts.update(0.1, 1.0)
    with pytest.raises(ExpertStoreError, match="the update failed"):
        experts.finish()


def test_a_mapped_store_gives_the_same_results(tmp_path):
    results = []
    for storage in ("memory", "mapped"):
        config, store = open_store(experts__storage=storage, experts__storage_folder=str(tmp_path / "scratch"))
        rng = np.random.default_rng(0)
        steps = [[random_plan(rng, store, [step % DOMAINS])] for step in range(6)]
        results.append(run_steps(config, store, steps))
        assert ("mapped from" in store.describe()) == (storage == "mapped")

    assert list((tmp_path / "scratch").iterdir()) == []  # the file has no name: nothing to clean up after a kill
    for array, other_array in zip(results[0][2], results[1][2], strict=True):
        np.testing.assert_array_equal(array, other_array)


@pytest.mark.parametrize("staging", ["false", "true"])
def test_a_failed_step_leaves_no_trace(staging):
    """The store is unchanged, and the next step equals that of experts without a failed step."""
    config, store = open_store(experts__staging=staging)
    before = state(store)
    experts = open_experts(store, config)
    rng = np.random.default_rng(0)
    for domains in ([0, 1], [2, 3], [1, 2]):
        plan = random_plan(rng, store, domains)
        upcoming = random_plan(rng, store, [1, 3])
        experts.begin([plan], [upcoming])
        experts.receive(plan, pretend_step(plan, experts.slabs(plan), 0))  # and then the step raises
    experts.finish()
    for array, other_array in zip(state(store), before, strict=True):
        np.testing.assert_array_equal(array, other_array)

    untouched = open_experts(store, config)
    for each in (experts, untouched):
        each.begin([upcoming])
        each.receive(upcoming, pretend_step(upcoming, each.slabs(upcoming), 1))
    assert experts.squared_norm() == untouched.squared_norm() > 0
