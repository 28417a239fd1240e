"""ExpertStore: only activated experts change, each by AdamW with its own step count."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from ascend_ops.expert_adam import reference
from mindpangu.config import ModelConfig, load_config
from mindpangu.domains import build_domains
from mindpangu.experts import ExpertStore
from mindpangu.experts.host_memory import HostMemory, page_rounded
from mindpangu.model.initialization import network_tensors
from mindpangu.parallel.expert_share import ExpertShare

SLAB_TENSORS = network_tensors(ModelConfig())


@pytest.fixture
def store():
    config = load_config(
        None,
        {
            "model.hidden_size": "8",
            "domains.names": "[zh, en]",
            "domains.experts": "{zh: 3}",
            "domains.experts_per_domain": "2",
        },
    )
    store = ExpertStore(config, build_domains(config))
    store.initialize()
    return store


def snapshot(store):
    groups = (store.weights, store.moment1, store.moment2)
    return [array.copy() for group in groups for layer in group for slab in layer for array in slab.values()]


def test_only_activated_experts_change(store):
    before = snapshot(store)
    activated_LMA = np.zeros((2, 2, 3), bool)
    activated_LMA[1, 0, 2] = True
    gradients = {(1, 0): [np.ones_like(store.weights[1][0][name]) for name in SLAB_TENSORS]}

    assert store.update(gradients, activated_LMA, 0.1, 1.0) == 1

    for layer in range(2):
        for domain in range(2):
            for index in range(3):
                assert store.step_counts[layer, domain, index] == int(activated_LMA[layer, domain, index])
    changed = 0
    for old, new in zip(before, snapshot(store), strict=True):
        for index in range(len(old)):
            changed += not np.array_equal(old[index], new[index])
    assert changed == 3 * len(SLAB_TENSORS)  # weights and both moments of one expert's four tensors


def test_experts_follow_the_textbook_with_their_own_step_counts(store):
    """Runs two steps, the second with more experts; weight decay does not apply to biases."""
    rng = np.random.default_rng(0)
    states = {
        name: [s[0][1][name].copy() for s in (store.weights, store.moment1, store.moment2)] for name in SLAB_TENSORS
    }
    settings = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-20, "gradient_scale": 0.5}
    for experts, steps in (([1], [1]), ([0, 1], [1, 2])):
        activated_LMA = np.zeros((2, 2, 3), bool)
        activated_LMA[0, 1, experts] = True
        # as small as the gradients for which PanGu-Σ chose its epsilon
        gradients = [(1e-9 * rng.standard_normal(states[n][0].shape)).astype(np.float32) for n in SLAB_TENSORS]
        assert store.update({(0, 1): gradients}, activated_LMA, 0.1, 0.5) == len(experts)
        for name, gradient in zip(SLAB_TENSORS, gradients, strict=True):
            decay = 0.1 if name in ("up", "down") else 0.0
            states[name] = reference.expert_adam(
                *states[name], gradient, experts, steps, **settings, weight_decay=decay
            )

    for name, (weight, moment1, moment2) in states.items():
        np.testing.assert_allclose(store.weights[0][1][name], weight, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(store.moment1[0][1][name], moment1, rtol=2e-6, atol=1e-15)
        np.testing.assert_allclose(store.moment2[0][1][name], moment2, rtol=2e-6, atol=1e-24)


def test_a_lookup_is_a_view(store):
    slabs = store.lookup((1,))

    assert len(slabs) == 2 * len(SLAB_TENSORS)
    assert slabs[0] is store.weights[0][1]["up"]
    assert slabs[0].flags.c_contiguous


def test_initial_weights_of_a_domain_do_not_depend_on_the_others(store):
    config = load_config(None, {"model.hidden_size": "8", "domains.names": "[en]", "domains.experts_per_domain": "2"})
    alone = ExpertStore(config, build_domains(config))
    alone.initialize()

    en = [domain.name for domain in store.domains].index("en")
    np.testing.assert_array_equal(alone.weights[1][0]["up"], store.weights[1][en]["up"][:2])
    assert not np.array_equal(alone.weights[1][0]["up"][0], alone.weights[1][0]["up"][1])


def test_the_squared_norm_counts_activated_experts_only(store):
    gradients = {(0, 1): [np.full((3, 5), 2.0, np.float32)], (1, 0): [np.full((3, 100_000), 0.5, np.float32)]}
    gradients[1, 0][0][1] = np.nan  # of an expert that received nothing
    activated_LMA = np.zeros((2, 2, 3), bool)
    activated_LMA[0, 1] = True
    activated_LMA[1, 0, [0, 2]] = True

    assert store.squared_norm(gradients, activated_LMA) == pytest.approx(15 * 4 + 50_000, rel=1e-6)


def test_the_squared_norm_of_many_numbers_is_exact(store):
    """A float32 sum over the whole slab would be wrong by one part in 2,000."""
    gradients = {(1, 0): [np.full((1, 1 << 20), 0.1, np.float32)]}
    activated_LMA = np.zeros((2, 2, 1), bool)
    activated_LMA[1, 0] = True

    found = store.squared_norm(gradients, activated_LMA)

    assert found == pytest.approx((1 << 20) * float(np.float32(0.1)) ** 2, rel=1e-4)


def test_the_squared_norm_of_a_layer_counts_the_experts_of_each_domain_separately(store):
    gradients = {(0, 0): [np.ones((3, 5), np.float32)], (0, 1): [np.full((3, 5), 10, np.float32)]}
    activated_LMA = np.zeros((2, 2, 3), bool)
    activated_LMA[0, 0, 1] = True
    activated_LMA[0, 1, [0, 2]] = True

    assert store.squared_norm(gradients, activated_LMA) == 5 + 1000


RANKS = [
    ExpertShare(frozenset({domain}), member, 2, tensor, 2)
    for domain, member, tensor in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("num_en", [1, 2, 3])
@pytest.mark.parametrize("share", RANKS, ids=str)
def test_a_rank_draws_its_share_of_all_experts(share, num_en):
    """zh has 4 experts; if en has 3, the second member has one of en, and a row without an expert."""
    changes = {"domains.names": "[zh, en]", "domains.experts": "{zh: 4}", "domains.experts_per_domain": str(num_en)}
    config = load_config(None, {"model.hidden_size": "8"} | changes)
    domains = build_domains(config)
    whole = ExpertStore(config, domains)
    whole.initialize()

    own = ExpertStore(config, domains, share)
    own.initialize()

    (domain,) = share.domains
    first = 2 * share.member
    count = max(min(2, domains[domain].num_experts - first), 0)
    assert own.experts() == [(layer, domain, index) for layer in range(2) for index in range(count)]
    assert (own.first, own.group_size) == (first, 2)
    for layer in range(2):
        assert own.weights[layer][1 - domain] == {}
        for name in own.tensors:
            for index in range(count):
                expected = own.slices[name].of(whole.weights[layer][domain][name][first + index])
                np.testing.assert_array_equal(own.weights[layer][domain][name][index], expected)
            assert not own.weights[layer][domain][name][count:].any()


def test_all_memory_that_a_rank_needs_is_allocated_at_once(monkeypatch):
    """A scratch file has one size: it must hold the slabs of this rank, and none of the others'."""
    sizes = []
    arrays = []

    class Memory(HostMemory):
        def __init__(self, num_bytes, folder=None):
            super().__init__(num_bytes, folder)
            sizes.append(num_bytes)

        def zeros(self, shape):
            arrays.append(page_rounded(4 * int(np.prod(shape))))
            return super().zeros(shape)

    monkeypatch.setattr("mindpangu.experts.store.HostMemory", Memory)
    config = load_config(None, {"model.hidden_size": "8", "domains.names": "[zh, en]"})

    for share in (ExpertShare(), ExpertShare(frozenset({1}), 1, 2)):
        ExpertStore(config, build_domains(config), share)
        assert sizes.pop() == sum(arrays)
        arrays.clear()


def test_a_model_without_domains_needs_no_memory():
    store = ExpertStore(load_config(None, {}), ())

    assert store.group_size == 0
    assert store.experts() == []
    assert store.describe() == "0, 0.0 MB with Adam's moments, in memory"


@pytest.mark.parametrize("folder", ["", "scratch"])
def test_a_mapped_store_lies_in_the_run_folder_unless_another_is_set(tmp_path, folder):
    changes = {"experts.storage": "mapped", "training.output_dir": str(tmp_path), "training.run_name": "run"}
    changes |= {"model.hidden_size": "8", "experts.storage_folder": str(tmp_path / folder) if folder else ""}
    config = load_config(None, changes)

    store = ExpertStore(config, build_domains(config))

    assert store.describe().endswith(f"mapped from {tmp_path / (folder or 'run')}")


def test_a_mapped_store_reads_ahead_the_experts_that_a_step_needs_and_no_others(store):
    rows = []
    store._memory = SimpleNamespace(mapped=True, will_need=rows.append)
    needed_LMA = np.zeros((2, 2, 3), bool)
    needed_LMA[0, 0, [0, 2]] = True
    needed_LMA[0, 1, 1] = True

    store.will_need(needed_LMA)

    groups = (store.weights, store.moment1, store.moment2)
    expected = [
        group[0][domain][name][index : index + 1]
        for domain, indices in ((0, (0, 2)), (1, (1,)))
        for group in groups
        for name in store.tensors
        for index in indices
    ]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.shape == wanted.shape
        assert np.shares_memory(row, wanted)


def test_before_update_sees_experts_that_have_not_changed(store):
    seen = []
    before = store.weights[1][0]["up"].copy()

    def look(layer, domain, experts):
        unchanged = np.array_equal(store.weights[layer][domain]["up"], before)
        seen.append((layer, domain, experts.tolist(), unchanged, int(store.step_counts.sum())))

    store.before_update = look
    activated_LMA = np.zeros((2, 2, 3), bool)
    activated_LMA[1, 0, [0, 2]] = True
    store.update({(1, 0): [np.ones_like(store.weights[1][0][n]) for n in SLAB_TENSORS]}, activated_LMA, 0.1, 1.0)

    assert seen == [(1, 0, [0, 2], True, 0)]


def test_steps_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 4):
        config = load_config(
            None,
            {"model.hidden_size": "8", "experts.host_threads": str(threads), "domains.experts_per_domain": "3"},
        )
        each = ExpertStore(config, build_domains(config))
        each.initialize()
        rng = np.random.default_rng(0)
        gradients = {
            (layer, domain): [rng.standard_normal(each.weights[0][0][n].shape).astype(np.float32) for n in SLAB_TENSORS]
            for layer in range(2)
            for domain in range(4)
        }
        each.update(gradients, np.ones((2, 4, 3), bool), 0.1, 0.5)
        results.append((snapshot(each), each.squared_norm(gradients, np.ones((2, 4, 3), bool))))

    assert results[0][1] == results[1][1]
    assert all(np.array_equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
