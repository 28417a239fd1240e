"""training.train: only the experts of the named domains are trained; everything else keeps every bit."""

import json
import shutil

import numpy as np
import pytest
from mindspore import Tensor, ops

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import ModelConfig, load_config
from mindpangu.data import Loader
from mindpangu.errors import CheckpointError, ConfigError
from mindpangu.experts import ExpertStore, open_experts
from mindpangu.model.initialization import network_tensors
from mindpangu.train.run import open_run, set_device, train
from mindpangu.train.step import TrainStep

SLAB_TENSORS = network_tensors(ModelConfig())

FROZEN = {
    "training.train": "experts:zh,code",
    "data.mixture": "{bilingual: 0, zh: 1, en: 0, code: 3}",
    "data.domains_per_step": "1",
}
# domain ids
TRAINED = (1, 3)
REST = (0, 2)


def open_frozen(overrides):
    """Returns (train step, loader) of a model that trains only the experts of zh and code."""
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    run.model.store.initialize()
    step = TrainStep(run.model)
    for moment in (*step.optimizer.moment1.values(), *step.optimizer.moment2.values()):
        ops.assign(moment, Tensor(np.full(moment.shape, 0.5, np.float32)))
    return step, Loader(run.shards, run.model.domains, config)


@pytest.fixture(scope="module")
def frozen(tiny_overrides):
    """Returns the result of `open_frozen` and its overrides; the functions are compiled once."""
    overrides = tiny_overrides | FROZEN
    return *open_frozen(overrides), overrides


def dense_bytes(step):
    optimizer = step.optimizer
    every = (*step.decoder.parameters.values(), *optimizer.moment1.values(), *optimizer.moment2.values())
    return {parameter.name: parameter.asnumpy().tobytes() for parameter in every}


def expert_bytes(store, domains):
    tensors = {}
    for group in ("weights", "moment1", "moment2"):
        for layer in range(store.num_layers):
            for domain in domains:
                for name in SLAB_TENSORS:
                    tensors[group, layer, domain, name] = getattr(store, group)[layer][domain][name].tobytes()
    return tensors


@pytest.mark.parametrize(
    "changes",
    [{}, {"experts.staging": "true"}, {"experts.mode": "host_full"}, {"experts.mode": "device"}],
    ids=["views", "staged", "host_full", "device"],
)
def test_a_step_changes_only_experts_of_the_named_domains(frozen, changes):
    step, loader, overrides = frozen
    config = load_config(None, overrides | changes)
    store = step.model.store = ExpertStore(config, step.model.domains)
    store.initialize()
    for layer in range(store.num_layers):  # moments that a step without gradient would shrink
        for domain in range(4):
            for name in SLAB_TENSORS:
                store.moment1[layer][domain][name][:] = store.moment2[layer][domain][name][:] = 0.5
    step.experts = open_experts(store, config)
    dense = dense_bytes(step)
    rest = expert_bytes(store, REST)
    trained = expert_bytes(store, TRAINED)

    for _ in range(4):
        batches = loader.next_step().micro_batches
        plans = [step.model.planner.plan(each) for each in batches]
        result = step.run(batches, plans, 0.01)
        assert result.skipped is None
    step.finish()

    assert dense_bytes(step) == dense
    assert expert_bytes(store, REST) == rest
    after = expert_bytes(store, TRAINED)
    assert [key for key in trained if after[key] == trained[key]] == []
    assert store.step_counts[:, REST].max() == 0
    if config.experts.mode == "host_full":
        assert (store.step_counts[:, TRAINED] == 4).all()


@pytest.mark.slow
def test_in_half_precision_an_overflow_changes_nothing_and_a_step_only_experts(tiny_overrides):
    changes = {"context.precision": "fp16", "training.loss_scale": str(2.0**30)}
    step, loader = open_frozen(tiny_overrides | FROZEN | changes)
    store = step.model.store
    dense = dense_bytes(step)
    rest = expert_bytes(store, REST)
    trained = expert_bytes(store, TRAINED)

    overflowed = []
    while not overflowed or overflowed[-1]:
        batches = loader.next_step().micro_batches
        plans = [step.model.planner.plan(each) for each in batches]
        result = step.run(batches, plans, 0.01)
        step.finish()
        overflowed.append(result.loss_scale_lowered)
        assert (expert_bytes(store, TRAINED) == trained) == result.loss_scale_lowered

    assert overflowed[0]
    assert dense_bytes(step) == dense
    assert expert_bytes(store, REST) == rest


def test_gradients_and_norm_are_those_of_the_whole_model_for_these_experts(frozen, tiny_overrides):
    step, loader, overrides = frozen
    step.experts = open_experts(step.model.store, load_config(None, overrides))
    batches = loader.next_step().micro_batches
    plans = [step.model.planner.plan(each) for each in batches]
    config = load_config(None, tiny_overrides)
    whole = open_run(config).model
    for name, parameter in step.decoder.parameters.items():
        ops.assign(whole.decoder.parameters[name], parameter)
    whole.store = step.model.store
    reference = TrainStep(whole)
    assert reference.gradients(batches, plans).dense
    expected = {key: [each.copy() for each in arrays] for key, arrays in reference.experts.gradients().items()}

    found = step.gradients(batches, plans)
    gradients = step.experts.gradients()

    assert found.dense == {}
    squared = 0.0
    assert set(gradients) == set(expected)
    for (layer, domain), arrays in expected.items():
        used_A = plans[0].counts_LDA[layer, plans[0].domain_of_slot.index(domain)] > 0
        for gradient, whole_gradient in zip(gradients[layer, domain], arrays, strict=True):
            np.testing.assert_allclose(gradient[used_A], whole_gradient[used_A], rtol=1e-5, atol=1e-8)
            squared += float((whole_gradient[used_A].astype(np.float64) ** 2).sum())
    assert step.run(batches, plans, 0.0).global_norm == pytest.approx(np.sqrt(squared), rel=1e-5)
    step.finish()


def files(folder, *prefixes):
    """Returns the names and hashes of the newest checkpoint's files with these prefixes."""
    entries = CheckpointReader(folder).files
    return {name: entry["blake2b"] for name, entry in entries.items() if name.startswith(prefixes)}


@pytest.mark.slow
def test_a_resumed_run_from_loaded_weights_equals_one_run_and_keeps_the_rest(tiny_run, tmp_path):
    overrides, folder = tiny_run

    def run(name, resume=False, load=None, **changes):
        words = (
            overrides | {"training.run_name": name} | {key.replace("__", "."): each for key, each in changes.items()}
        )
        config = load_config(None, words)
        set_device(config)
        train(open_run(config), resume, load, log=lambda text: None)

    run("run", training__steps="2", lr_scheduler__decay_steps="4")
    for name in ("whole", "stopped"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint", "metrics.jsonl"))
    frozen = {key.replace(".", "__"): value for key, value in FROZEN.items()} | {"lr_scheduler__decay_steps": "4"}
    run("whole", load=folder, training__steps="4", **frozen)
    run("stopped", load=folder, training__steps="2", **frozen)
    run("stopped", resume=True, training__steps="4", **frozen)
    assert files(tmp_path / "whole", "experts", "dense") == files(tmp_path / "stopped", "experts", "dense")

    before = CheckpointReader(folder)
    after = CheckpointReader(tmp_path / "whole")
    then = before.tensors("dense_00000_of_00001.safetensors")
    now = after.tensors("dense_00000_of_00001.safetensors")
    parameters = [name for name in then if not name.startswith("adam_")]
    assert [name for name in parameters if now[name].tobytes() != then[name].tobytes()] == []
    assert not any(now[name].any() for name in now if name.startswith("adam_"))
    experts = [name for name in before.files if name.startswith("experts/")]
    for name in (name for name in experts if ".zh." not in name and ".code." not in name):
        then = before.tensors(name)
        now = after.tensors(name)  # the moments of the new run are zeros
        assert all(now[each].tobytes() == then[each].tobytes() for each in SLAB_TENSORS)
        assert not any(now[each].any() for each in now if each not in SLAB_TENSORS)

    with pytest.raises(CheckpointError, match=r"training.train was 'experts:zh,code', is 'all'"):
        run("stopped", resume=True, training__steps="6", **(frozen | {"training__train": "all"}))


def test_settings_that_would_train_nothing_are_refused(tiny_overrides):
    def refuse(message, **changes):
        words = tiny_overrides | FROZEN | {key.replace("__", "."): value for key, value in changes.items()}
        with pytest.raises(ConfigError, match=message):
            open_run(load_config(None, words))

    refuse("data.mixture gives domain 'en' a weight", data__mixture="{bilingual: 0, zh: 1, en: 1, code: 3}")
    refuse("data.mixture gives domain 'bilingual' a weight", data__mixture="{}")
    refuse(
        r"data.phases\[0\].mixture gives domain 'en' a weight",
        data__phases=json.dumps([{"steps": 2, "mixture": {"en": 1}}]),
    )
    refuse("training.train names 'klingon'", training__train="experts:klingon")
    refuse("training.train is 'zh'", training__train="zh")
    refuse("training.train is 'experts:'", training__train="experts:")
    refuse("a dense model", model__rre_layers="0")
