"""StoreSnapshot: whatever updates do meanwhile, every expert is read as it was, and copies do not stay."""

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
    """A step that activates these experts."""
    activated = np.zeros((store.num_layers, len(store.domains), store.group_size), bool)
    for where in experts:
        activated[where] = True
    gradients = {
        (layer, domain): [np.full_like(store.weights[layer][domain][name], 0.5) for name in SLAB_TENSORS]
        for layer, domain in np.argwhere(activated.any(-1)).tolist()
    }
    store.update(gradients, activated, rate, 1.0)


def state(store):
    """(layer, domain, index) → copies of all tensors."""
    groups = dict(zip(PREFIXES, (store.weights, store.moment1, store.moment2), strict=True))
    return {
        (layer, domain, index): {
            prefix + name: group[layer][domain][name][index].copy()
            for prefix, group in groups.items()
            for name in SLAB_TENSORS
        }
        for layer, domain, index in store.experts()
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(np.array_equal(found[name], expected[name]) for name in expected)


EXPERTS = make_store().experts()
# what happens one after the other: an update of some experts, or an expert that is read or released
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
    expected, counts = state(store), store.step_counts.copy()
    snapshot = StoreSnapshot(store)
    unread, touched = set(EXPERTS), set()
    for kind, what in events:
        if kind == "update":
            update(store, what)
            touched |= what
        elif what in unread:
            unread.remove(what)
            if kind == "release":
                snapshot.release(what)
            else:
                with snapshot.read(what) as tensors:
                    assert same(tensors, expected[what])
        assert set(snapshot.copies) == touched & unread  # only what updates touched, and only until it is read
    for where in unread:
        with snapshot.read(where) as tensors:
            assert same(tensors, expected[where])
    np.testing.assert_array_equal(snapshot.step_counts, counts)
    assert not snapshot.copies


@pytest.mark.parametrize("seed", range(3))
def test_reads_beside_updates_give_the_saved_state(seed):
    """Threads that read, and one that updates, all the time; experts are large enough for them to overlap."""
    rng = np.random.default_rng(seed)
    store = make_store(hidden_size=96)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            update(store, [where for where in EXPERTS if rng.random() < 0.5])

    def read(snapshot, where):
        with snapshot.read(where) as tensors:
            return where, {name: tensor.copy() for name, tensor in tensors.items()}

    try:
        for _ in range(10):
            stop.clear()
            expected = state(store)
            snapshot = StoreSnapshot(store)
            trainer = threading.Thread(target=train)
            trainer.start()
            order = [EXPERTS[i] for i in rng.permutation(len(EXPERTS))]
            with ThreadPoolExecutor(2) as readers:
                found = list(readers.map(lambda where, taken=snapshot: read(taken, where), order))
            stop.set()
            trainer.join()
            snapshot.close()
            assert all(same(tensors, expected[where]) for where, tensors in found)
            assert not snapshot.copies
    finally:
        stop.set()
        sys.setswitchinterval(interval)


def test_an_update_waits_for_the_reader_of_its_expert_alone():
    store = make_store()
    expected = state(store)
    snapshot = StoreSnapshot(store)
    read, other = EXPERTS[0], EXPERTS[-1]
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
    assert set(snapshot.copies) == {other}  # what was read needs no copy


def test_a_reader_waits_until_its_expert_is_copied():
    """An update that has begun to copy an expert is not overtaken by the reader, which would see it change."""
    store = make_store()
    expected = state(store)
    snapshot = StoreSnapshot(store)
    where = EXPERTS[0]
    copying, go_on = threading.Event(), threading.Event()
    tensors_of = snapshot._tensors

    def slow(asked):
        copying.set()
        assert go_on.wait(10)
        return tensors_of(asked)

    snapshot._tensors = slow
    with ThreadPoolExecutor(2) as threads:
        updating = threads.submit(update, store, [where])
        assert copying.wait(10)
        copying.clear()

        def read():
            with snapshot.read(where) as tensors:
                return same(tensors, expected[where])

        reading = threads.submit(read)
        assert not copying.wait(0.2)  # it has not looked at the store
        go_on.set()
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
    hook(0, 0, np.array([0, 1]))  # of an update that had already looked
    assert not snapshot.copies


def test_an_expert_that_could_not_be_read_is_let_go_at_the_end():
    snapshot = StoreSnapshot(make_store())
    with pytest.raises(RuntimeError), snapshot.read(EXPERTS[0]):
        raise RuntimeError
    with snapshot.read(EXPERTS[0]):
        pass
    snapshot.close()
