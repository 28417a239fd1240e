"""StoreSnapshot: every expert is read as it was, whatever updates do meanwhile, and copies are freed."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.config import ModelConfig, load_config
from mindpangu.domains import build_domains
from mindpangu.experts import ExpertStore, StoreSnapshot
from mindpangu.model.initialization import network_tensors

SLAB_TENSORS = network_tensors(ModelConfig())

PREFIXES = ("", "adam_m.", "adam_v.")


def make_store(hidden_size=4):
    config = load_config(
        None,
        {
            "model.hidden_size": str(hidden_size),
            "domains.names": "[zh, en]",
            "domains.experts": "{zh: 3}",
            "domains.experts_per_domain": "2",
        },
    )
    store = ExpertStore(config, build_domains(config))
    store.initialize()
    update(store, store.experts())  # moments and step counts that are not 0
    return store


def update(store, experts, rate=0.1):
    """Runs a step that activates these experts."""
    activated_LMA = np.zeros((store.num_layers, len(store.domains), store.group_size), bool)
    for expert in experts:
        activated_LMA[expert] = True
    gradients = {
        (layer, domain): [np.full_like(store.weights[layer][domain][name], 0.5) for name in SLAB_TENSORS]
        for layer, domain in np.argwhere(activated_LMA.any(-1)).tolist()
    }
    store.update(gradients, activated_LMA, rate, 1.0)


def state(store):
    """Returns (layer, domain, index) → copies of all tensors."""
    groups = dict(zip(PREFIXES, (store.weights, store.moment1, store.moment2), strict=True))
    return {
        (layer, domain, index): {
            prefix + name: group[layer][domain][name][index].copy()
            for prefix, group in groups.items()
            for name in SLAB_TENSORS
        }
        for layer, domain, index in store.experts()
    }


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    return all(np.array_equal(tensors[name], expected[name]) for name in expected)


EXPERTS = make_store().experts()
# events in order: an update of some experts, or one expert read or released
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sets(st.sampled_from(EXPERTS), min_size=1)),
        st.tuples(st.sampled_from(["read", "release"]), st.sampled_from(EXPERTS)),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_any_order_of_updates_and_reads_gives_the_saved_state(events):
    store = make_store()
    expected = state(store)
    step_counts = store.step_counts.copy()
    snapshot = StoreSnapshot(store)
    unread = set(EXPERTS)
    updated = set()

    for kind, argument in events:
        if kind == "update":
            update(store, argument)
            updated |= argument
        elif argument in unread:
            unread.remove(argument)
            if kind == "release":
                snapshot.release(argument)
            else:
                with snapshot.read(argument) as tensors:
                    assert same(tensors, expected[argument])
        assert set(snapshot.copies) == updated & unread  # only updated experts are copied, and only until they are read

    for expert in unread:
        with snapshot.read(expert) as tensors:
            assert same(tensors, expected[expert])
    np.testing.assert_array_equal(snapshot.step_counts, step_counts)
    assert not snapshot.copies


@pytest.mark.parametrize("seed", range(3))
def test_reads_during_updates_give_the_saved_state(seed):
    """Threads read while another one updates constantly; experts are large enough for reads and updates to overlap."""
    rng = np.random.default_rng(seed)
    store = make_store(hidden_size=96)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            update(store, [expert for expert in EXPERTS if rng.random() < 0.5])

    def read(snapshot, expert):
        with snapshot.read(expert) as tensors:
            return expert, {name: tensor.copy() for name, tensor in tensors.items()}

    try:
        for _ in range(10):
            stop.clear()
            expected = state(store)
            snapshot = StoreSnapshot(store)
            trainer = threading.Thread(target=train)
            trainer.start()
            order = [EXPERTS[i] for i in rng.permutation(len(EXPERTS))]
            with ThreadPoolExecutor(2) as readers:
                states = list(readers.map(lambda expert, taken=snapshot: read(taken, expert), order))
            stop.set()
            trainer.join()
            snapshot.close()
            assert all(same(tensors, expected[expert]) for expert, tensors in states)
            assert not snapshot.copies
    finally:
        stop.set()
        sys.setswitchinterval(interval)


def test_an_update_waits_only_for_the_reader_of_its_expert():
    store = make_store()
    expected = state(store)
    snapshot = StoreSnapshot(store)
    read = EXPERTS[0]
    other = EXPERTS[-1]

    with snapshot.read(read) as tensors:
        update(store, [other])  # nobody reads this one
        waiting = threading.Thread(target=update, args=(store, [read]))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert same(tensors, expected[read])
    waiting.join(10)

    assert not waiting.is_alive()
    assert not same(state(store)[read], expected[read])
    assert set(snapshot.copies) == {other}  # an expert that was read needs no copy


def test_a_reader_waits_until_its_expert_is_copied():
    """A reader must not overtake an update that has begun to copy the expert: it would see the expert change."""
    store = make_store()
    expected = state(store)
    snapshot = StoreSnapshot(store)
    expert = EXPERTS[0]
    copying = threading.Event()
    may_continue = threading.Event()
    tensors_of = snapshot._tensors

    def slow(expert):
        copying.set()
        assert may_continue.wait(10)
        return tensors_of(expert)

    snapshot._tensors = slow

    with ThreadPoolExecutor(2) as threads:
        updating = threads.submit(update, store, [expert])
        assert copying.wait(10)
        copying.clear()

        def read():
            with snapshot.read(expert) as tensors:
                return same(tensors, expected[expert])

        reading = threads.submit(read)
        assert not copying.wait(0.2)  # the reader has not looked at the store
        may_continue.set()
        assert reading.result(10)
        updating.result(10)


def test_a_closed_snapshot_costs_nothing():
    store = make_store()
    snapshot = StoreSnapshot(store)
    hook = store.before_update
    update(store, EXPERTS)
    assert len(snapshot.copies) == len(EXPERTS)

    snapshot.close()

    assert store.before_update is None
    assert not snapshot.copies

    hook(0, 0, np.array([0, 1]))  # called by an update that had already read the hook
    assert not snapshot.copies


def test_an_expert_whose_reader_failed_can_be_read_again():
    snapshot = StoreSnapshot(make_store())

    with pytest.raises(RuntimeError), snapshot.read(EXPERTS[0]):
        raise RuntimeError

    with snapshot.read(EXPERTS[0]):
        pass
    snapshot.close()
