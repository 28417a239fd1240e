"""A store of a few tiny experts, and steps whose gradients depend on the weights that the step saw."""

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.config import load_config
from mindpangu.data import equal_parts
from mindpangu.data.route_plan import RoutePlan
from mindpangu.domains import build_domains
from mindpangu.experts import ExpertStore, open_experts

LAYERS = 2
DOMAINS = 4
GROUP = 3


def open_store(**changes):
    """Returns (config, store) of 4 domains with 3, 2, 3 and 3 experts in 2 layers, with initial weights."""
    overrides = {"model.hidden_size": "8", "domains.experts": "{zh: 2}", "domains.experts_per_domain": "3"}
    config = load_config(None, overrides | {key.replace("__", "."): value for key, value in changes.items()})
    store = ExpertStore(config, build_domains(config))
    store.initialize()
    return config, store


def state(store):
    """Returns copies of everything that an update may change."""
    groups = (store.weights, store.moment1, store.moment2)
    arrays = [array.copy() for group in groups for layer in group for slab in layer for array in slab.values()]
    return [*arrays, store.step_counts.copy()]


def random_plan(rng, store, domains):
    counts_LDA = rng.integers(0, 3, (LAYERS, len(domains), GROUP))
    for slot, domain in enumerate(domains):
        counts_LDA[:, slot, store.domains[domain].num_experts :] = 0
    experts_D = np.array([store.domains[domain].num_experts for domain in domains])
    tables_LDV = np.zeros((LAYERS, len(domains), 1), np.int32)
    return RoutePlan(tuple(domains), equal_parts(len(domains), len(domains)), tables_LDV, counts_LDA, experts_D)


def pretend_step(plan, slabs, position):
    """Returns slab gradients like a compiled step's: functions of the weights, zero for experts without tokens."""
    rng = np.random.default_rng(position)
    gradients = []
    for index, slab in enumerate(slabs):
        layer, slot = divmod(index // 4, len(plan.domain_of_slot))
        used_A = plan.counts_LDA[layer, slot] > 0
        slab = slab.asnumpy()
        gradient = slab.astype(np.float32) + rng.standard_normal(slab.shape, dtype=np.float32)
        gradient[~used_A] = 0
        gradients.append(Tensor.from_numpy(gradient.astype(slab.dtype)))
    return gradients


def run_steps(config, store, steps, announced=1, link=None, skipped=()):
    """Runs steps (lists of plans); returns (norms, traffics, final state).

    Args:
        announced: which step is announced as upcoming, counted from the current one: 1 is right, 2 is wrong, None
            announces nothing.
        skipped: indices of steps without an update.
    """
    experts = open_experts(store, config, link)
    norms = []
    traffics = []
    for step_index, plans in enumerate(steps):
        upcoming_index = step_index + announced if announced else len(steps)
        upcoming = steps[upcoming_index] if upcoming_index < len(steps) else None
        experts.begin(plans, upcoming)
        for position, plan in enumerate(plans):
            experts.receive(plan, pretend_step(plan, experts.slabs(plan), 10 * step_index + position))
        norms.append(experts.squared_norm())
        if step_index not in skipped:
            experts.update(0.01, 0.5)
        traffics.append(experts.traffic)
    experts.finish()
    return norms, traffics, state(store)


@pytest.fixture
def store():
    return open_store()[1]
