"""A training step with experts on the host equals, bit for bit, one whose experts never move, and plain AdamW."""

import itertools

import numpy as np
import pytest
from mindspore import Tensor, ops

from ascend_ops.expert_adam import reference
from mindpangu.config import ModelConfig, load_config
from mindpangu.data import Loader
from mindpangu.experts import ExpertStore, open_experts
from mindpangu.model.initialization import network_tensors
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep

SLAB_TENSORS = network_tensors(ModelConfig())

VARIANTS = {
    "views": {},
    "staged": {"experts.staging": "true"},
    "no overlap": {"experts.staging": "true", "experts.overlap": "false"},
    "mapped": {"experts.storage": "mapped"},
}


class Trainer:
    """One model whose training can be restarted in another mode without compiling again."""

    def __init__(self, overrides):
        self.overrides = overrides
        config = load_config(None, overrides)
        set_device(config)
        run = open_run(config)
        self.model = run.model
        self.loader = Loader(run.shards, run.model.domains, config)
        self.step = TrainStep(self.model)
        optimizer = self.step.optimizer
        self.parameters = {
            **self.model.decoder.parameters,
            **{p.name: p for p in (*optimizer.moment1.values(), *optimizer.moment2.values())},
        }
        self.initial = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def plans(self, count):
        """Plans steps of shuffled micro-batches: domains repeat, alternate, and meet in one step."""
        steps = [self.loader.next_step().micro_batches for _ in range(count)]
        batches = [batch for step in steps for batch in step]
        np.random.default_rng(0).shuffle(batches)
        plans = [self.model.planner.plan(each) for each in batches]
        size = len(batches) // count
        return [(batches[i : i + size], plans[i : i + size]) for i in range(0, len(batches), size)]

    def train(self, steps, changes):
        """Trains these steps from the initial weights; returns (results of the steps, all state as arrays)."""
        config = load_config(None, self.overrides | changes)
        self.model.store = ExpertStore(config, self.model.domains)
        self.model.store.initialize()
        self.step.experts = open_experts(self.model.store, config)
        self.step.updates = 0
        for name, value in self.initial.items():
            # in place: a compiled function that has run does not see the data of set_data
            ops.assign(self.parameters[name], Tensor(value))
        results = []
        for index, (batches, plans) in enumerate(steps):
            upcoming = steps[index + 1][1] if index + 1 < len(steps) else None
            results.append(self.step.run(batches, plans, 1e-2, upcoming))
        self.step.finish()
        store = self.model.store
        experts = [
            slab[name].copy()
            for group in (store.weights, store.moment1, store.moment2)
            for layer in group
            for slab in layer
            for name in SLAB_TENSORS
        ]
        dense = [parameter.asnumpy().copy() for parameter in self.parameters.values()]
        return results, [*experts, store.step_counts.copy(), *dense]


@pytest.fixture(scope="module", params=["one micro-batch", pytest.param("accumulation", marks=pytest.mark.slow)])
def trainer(request, tiny_overrides):
    changes = {"training.max_norm": "0.5", "training.spike_sigma": "0"}
    if request.param == "accumulation":
        changes |= {"data.domains_per_step": "2", "training.global_batch_size": "8"}
    return Trainer(tiny_overrides | changes)


@pytest.fixture(scope="module")
def resident(trainer):
    steps = trainer.plans(50)
    return steps, *trainer.train(steps, {"experts.mode": "device"})


@pytest.mark.parametrize(
    "variant",
    ["views", "staged", *(pytest.param(name, marks=pytest.mark.slow) for name in ("no overlap", "mapped"))],
)
def test_host_ecss_equals_device_over_50_steps(trainer, resident, variant, tmp_path):
    steps, expected, expected_state = resident
    domains = [{domain for plan in plans for domain in plan.domain_of_slot} for _, plans in steps]
    assert any(one == other for one, other in itertools.pairwise(domains))
    assert any(one != other for one, other in itertools.pairwise(domains))

    results, state = trainer.train(steps, VARIANTS[variant] | {"experts.storage_folder": str(tmp_path)})

    assert [each.global_norm > 0.5 for each in results].count(True) > 25  # clipping is active
    assert [(each.loss, each.global_norm) for each in results] == [(e.loss, e.global_norm) for e in expected]
    for actual_array, expected_array in zip(state, expected_state, strict=True):
        np.testing.assert_array_equal(actual_array, expected_array)


def test_with_tokens_for_every_expert_the_update_is_plain_adamw(tiny_overrides):
    """If every expert receives tokens in each step, all step counts are equal, as in the textbook's Adam."""
    trainer = Trainer(tiny_overrides | {"data.domains_per_step": "4", "training.local_batch_size": "32"})
    steps = trainer.plans(20)
    gradients = []
    update = ExpertStore.update

    def record(store, slabs, updated_LMA, learning_rate, scale):
        assert updated_LMA.all()
        gradients.append(({key: [each.copy() for each in slabs[key]] for key in slabs}, scale))
        return update(store, slabs, updated_LMA, learning_rate, scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpertStore, "update", record)
        trainer.train(steps, {})

    assert len(gradients) == len(steps)
    store = trainer.model.store
    fresh = ExpertStore(trainer.model.config, store.domains)
    fresh.initialize()
    everyone = np.arange(store.group_size)
    for layer in range(store.num_layers):
        for domain in range(len(store.domains)):
            for index, name in enumerate(SLAB_TENSORS):
                weight = fresh.weights[layer][domain][name].astype(np.float64)
                states = weight, np.zeros_like(weight), np.zeros_like(weight)
                for count, (slabs, scale) in enumerate(gradients, 1):
                    states = reference.expert_adam(
                        *states,
                        slabs[layer, domain][index],
                        everyone,
                        np.full(len(everyone), count),
                        learning_rate=1e-2,
                        beta1=0.9,
                        beta2=0.95,
                        eps=1e-20,
                        weight_decay=0.1 if name in ("up", "down") else 0.0,
                        gradient_scale=scale,
                    )
                difference = store.weights[layer][domain][name] - states[0]
                assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(states[0]), (layer, domain, name)
