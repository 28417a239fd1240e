"""ExpertStore and its Adam: only activated experts change, and they change as the formula says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.experts import SLAB_TENSORS, AdamSettings, ExpertStore, adam_in_place


def adamw_textbook(w, m, v, g, settings, step, lr, scale, decay):
    """Loshchilov & Hutter, algorithm 2, written out in float64."""
    g = g * scale
    m = settings.beta1 * m + (1 - settings.beta1) * g
    v = settings.beta2 * v + (1 - settings.beta2) * g * g
    m_hat, v_hat = m / (1 - settings.beta1**step), v / (1 - settings.beta2**step)
    w = w - lr * settings.weight_decay * w * decay - lr * m_hat / (np.sqrt(v_hat) + settings.eps)
    return w, m, v


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 7, 1000, 40000]),
    steps=st.integers(1, 4),
    scale=st.floats(0.01, 1),
    decay=st.booleans(),
    eps=st.sampled_from([1e-8, 1e-20]),
)
@settings(max_examples=30, deadline=None)
def test_adam_matches_the_formula(seed, size, steps, scale, decay, eps):
    chance = np.random.default_rng(seed)
    constants = AdamSettings(0.8, 0.95, eps, 0.1)
    w = chance.standard_normal(size).astype(np.float32)
    m, v = np.zeros_like(w), np.zeros_like(w)
    expected = [array.astype(np.float64) for array in (w, m, v)]
    for step in range(1, steps + 1):
        # gradients as small as those for which PanGu-Σ chose its epsilon
        g = (chance.standard_normal(size) * 10.0 ** chance.integers(-9, 1)).astype(np.float32)
        adam_in_place(
            w, m, v, g,
            settings=constants, step_count=step, learning_rate=0.01, gradient_scale=scale, decay=decay,
        )  # fmt: skip
        expected = adamw_textbook(*expected, g.astype(np.float64), constants, step, 0.01, scale, decay)
    for found, wanted in zip((w, m, v), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6 * np.abs(wanted).max())


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
    activated = np.zeros((2, 2, 3), bool)
    activated[1, 0, 2] = True
    gradients = {(1, 0): [np.ones_like(store.weights[1][0][name]) for name in SLAB_TENSORS]}
    assert store.update(gradients, activated, 0.1, 1.0) == 1
    for layer in range(2):
        for domain in range(2):
            for index in range(3):
                assert store.step_counts[layer, domain, index] == int(activated[layer, domain, index])
    changed = 0
    for old, new in zip(before, snapshot(store), strict=True):
        for index in range(len(old)):
            changed += not np.array_equal(old[index], new[index])
    assert changed == 3 * len(SLAB_TENSORS)  # weights and both moments of one expert's four tensors


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


def test_squared_norm(store):
    gradients = {(0, 1): [np.full((3, 5), 2.0, np.float32)], (1, 0): [np.full(100_000, 0.5, np.float32)]}
    assert store.squared_norm(gradients) == pytest.approx(15 * 4 + 25_000, rel=1e-6)


def test_steps_do_not_depend_on_the_number_of_threads(store):
    results = []
    for threads in (1, 4):
        config = load_config(
            None,
            {"model.hidden_size": "8", "experts.update_threads": str(threads), "domains.experts_per_domain": "3"},
        )
        each = ExpertStore(config, build_domains(config))
        each.initialize()
        chance = np.random.default_rng(0)
        gradients = {
            (layer, domain): [
                chance.standard_normal(each.weights[0][0][n].shape).astype(np.float32) for n in SLAB_TENSORS
            ]
            for layer in range(2)
            for domain in range(4)
        }
        each.update(gradients, np.ones((2, 4, 3), bool), 0.1, 0.5)
        results.append((snapshot(each), each.squared_norm(gradients)))
    assert results[0][1] == results[1][1]
    assert all(np.array_equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
