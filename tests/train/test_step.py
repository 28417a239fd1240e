"""The training step: three functions equal one graph; accumulation, dense twin, overfitting, skipping."""

import importlib
import re

import mindspore as ms
import numpy as np
import pytest

from mindpangu.config import ModelConfig, load_config
from mindpangu.data import Loader
from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer
from mindpangu.language_model import as_tensor
from mindpangu.model.initialization import dense_name, network_tensors
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep

SLAB_TENSORS = network_tensors(ModelConfig())


def open_tiny(tiny_overrides, **changes):
    """Returns (model, loader) of the prepared tiny run, with initial weights."""
    overrides = tiny_overrides | {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    run.model.store.initialize()
    return run.model, Loader(run.shards, run.model.domains, config)


def planned(model, loader):
    batches = loader.next_step().micro_batches
    return batches, [model.planner.plan(batch) for batch in batches]


@pytest.mark.parametrize("slots", [1, 2])
def test_three_functions_equal_one_graph_bit_for_bit(tiny_overrides, slots):
    model, loader = open_tiny(tiny_overrides, data__domains_per_step=str(slots))
    step = TrainStep(model)
    batches, plans = planned(model, loader)
    batch = batches[0]
    plan = plans[0]
    weights_BS = batch.loss_mask_BS / np.float32(batch.loss_mask_BS.sum())
    inputs = model.inputs(batch.tokens_BS, batch.positions_BS, plan)
    slab_tensors = [as_tensor(slab) for slab in model.store.lookup(plan.domain_of_slot)]

    gradients = step.gradients(batches, plans)
    (loss, _, _), (slabs, dense) = step.functions.whole_step(
        inputs.vocabulary,
        0,
        inputs.rows_BS,
        inputs.tokens_BS,
        inputs.positions_BS,
        as_tensor(batch.targets_BS),
        as_tensor(weights_BS),
        inputs.vocabulary_of_sample_B,
        inputs.domain_slots_B,
        inputs.tables_LDV,
        *slab_tensors,
    )

    assert gradients.loss == float(loss.asnumpy())
    assert set(gradients.dense) == set(model.decoder.parameters)
    for name, gradient in zip(model.decoder.parameters, dense, strict=True):
        np.testing.assert_array_equal(gradients.dense[name].asnumpy(), gradient.asnumpy(), err_msg=name)
    assert np.abs(gradients.dense["word_embedding"].asnumpy()).max() > 0
    position = 0
    for layer in range(2):
        for domain in plan.domain_of_slot:
            for gradient in step.experts.gradients()[layer, domain]:
                np.testing.assert_array_equal(gradient, slabs[position].asnumpy())
                position += 1
    assert position == len(slabs) == 2 * slots * len(SLAB_TENSORS)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["composed", "cpu"])
def test_recomputation_is_in_the_graph_and_changes_no_bit(tiny_overrides, tmp_path, monkeypatch, backend):
    """On the CPU it saves no memory. On an NPU, where it does, the operators are composed."""
    if backend == "composed":
        for operator in ("norm", "linear", "causal_attention", "grouped_ffn"):
            composed = importlib.import_module(f"ascend_ops.{operator}.composed")
            monkeypatch.setattr(f"ascend_ops.{operator}.implementation", composed)
    kept, expected = products_and_gradients(tiny_overrides, tmp_path / "kept", "false")
    repeated, actual = products_and_gradients(tiny_overrides, tmp_path / "repeated", "true")

    if backend == "composed":
        # per attention, three projections and the two products, but not the output: the last result is not needed
        # again; per dense FFN, the first matrix
        assert repeated == kept + 5 * 3 + 1
    assert actual.loss == expected.loss
    for name, gradient in expected.dense.items():
        np.testing.assert_array_equal(actual.dense[name].asnumpy(), gradient.asnumpy(), err_msg=name)


def products_and_gradients(tiny_overrides, folder, recompute):
    """Returns (number of matrix products in the graphs with gradients, gradients of a step)."""
    model, loader = open_tiny(tiny_overrides, training__recompute=recompute)
    ms.set_context(save_graphs=1, save_graphs_path=str(folder))
    try:
        gradients = TrainStep(model).gradients(*planned(model, loader))
    finally:
        ms.set_context(save_graphs=0)
    graphs = folder.rglob("graph_build_*.ir")
    return sum(len(re.findall(r"= \w*MatMul\(", path.read_text())) for path in graphs), gradients


def test_accumulated_micro_batches_equal_one_large_batch(tiny_overrides):
    large_model, large = open_tiny(tiny_overrides, training__local_batch_size="8", data__domains_per_step="2")
    small_model, small = open_tiny(tiny_overrides, training__global_batch_size="8", data__domains_per_step="2")
    one_step = TrainStep(large_model)
    two_step = TrainStep(small_model)
    batches, plans = planned(small_model, small)
    assert len(batches) == 2

    one = one_step.gradients(*planned(large_model, large))
    two = two_step.gradients(batches, plans)

    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert one_step.experts.gradients().keys() == two_step.experts.gradients().keys()
    assert one_step.experts.traffic.activated == two_step.experts.traffic.activated > 0
    for name, gradient in one.dense.items():
        np.testing.assert_allclose(two.dense[name].asnumpy(), gradient.asnumpy(), atol=2e-6, err_msg=name)
    for key, gradients in one_step.experts.gradients().items():
        for gradient, other_gradient in zip(gradients, two_step.experts.gradients()[key], strict=True):
            np.testing.assert_allclose(gradient, other_gradient, atol=2e-6)


@pytest.mark.parametrize("architecture", ["pangu_sigma", pytest.param("pangu_pi", marks=pytest.mark.slow)])
def test_a_layer_of_one_expert_equals_a_dense_layer(tiny_overrides, pangu_pi, tmp_path, architecture):
    """Losses and gradients of a model with one expert per layer and domain equal those of the dense model."""
    tiny_overrides = tiny_overrides | (pangu_pi if architecture == "pangu_pi" else {})
    changes = {"domains.experts_per_domain": "1", "training.output_dir": str(tmp_path), "training.run_name": "one"}
    overrides = tiny_overrides | changes
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(load_config(None, overrides), log=lambda text: None)
    rre_model, loader = open_tiny(overrides)
    dense_model, _ = open_tiny(overrides, model__rre_layers="0")
    batches, plans = planned(rre_model, loader)
    (domain,) = batches[0].domain_of_slot
    parts = {name: dense_name(name) for name in rre_model.store.tensors}
    layers = ("blocks.1", "query_layer" if architecture == "pangu_sigma" else "blocks.2")
    for layer, name in enumerate(layers):
        slab = rre_model.store.weights[layer][domain]
        assert len(slab["up"]) == 1
        for part, parameter in parts.items():
            slab[part][0] = dense_model.decoder.parameters[f"{name}.ffn.{parameter}"].asnumpy()

    np.testing.assert_allclose(rre_model.token_losses(batches[0]), dense_model.token_losses(batches[0]), atol=2e-6)
    rre_step = TrainStep(rre_model)
    rre = rre_step.gradients(batches, plans)
    dense_plan = dense_model.planner.plan(batches[0], (domain,))
    dense = TrainStep(dense_model).gradients(batches, [dense_plan])

    for name, gradient in rre.dense.items():
        np.testing.assert_allclose(gradient.asnumpy(), dense.dense[name].asnumpy(), atol=2e-6, err_msg=name)
    for layer, name in enumerate(layers):
        for gradient, parameter in zip(rre_step.experts.gradients()[layer, domain], parts.values(), strict=True):
            expected = dense.dense[f"{name}.ffn.{parameter}"].asnumpy()
            np.testing.assert_allclose(gradient[0], expected, atol=2e-6)


def test_the_model_overfits_one_batch(tiny_overrides):
    model, loader = open_tiny(tiny_overrides, training__spike_sigma="0", model__hidden_size="32")
    step = TrainStep(model)
    batches, plans = planned(model, loader)

    losses = [step.run(batches, plans, 1e-2).loss for _ in range(60)]

    assert losses[0] > 5
    assert losses[-1] < 0.5


def test_a_skipped_step_leaves_every_bit(tiny_overrides):
    model, loader = open_tiny(tiny_overrides)
    step = TrainStep(model)
    batches, plans = planned(model, loader)
    step.run(batches, plans, 1e-3)
    step.finish()
    (domain,) = batches[0].domain_of_slot
    model.store.weights[0][domain]["up"][:] = np.nan
    before = {name: parameter.asnumpy().copy() for name, parameter in model.decoder.parameters.items()}
    moments = {name: parameter.asnumpy().copy() for name, parameter in step.optimizer.moment2.items()}
    counts = model.store.step_counts.copy()

    result = step.run(batches, plans, 1e-3)
    step.finish()

    assert result.skipped == "loss is nan"
    assert step.updates == 1
    np.testing.assert_array_equal(counts, model.store.step_counts)
    for name, parameter in model.decoder.parameters.items():
        np.testing.assert_array_equal(before[name], parameter.asnumpy())
        np.testing.assert_array_equal(moments[name], step.optimizer.moment2[name].asnumpy())


def test_dense_adam_matches_the_formula(tiny_overrides):
    model, _loader = open_tiny(tiny_overrides)
    step = TrainStep(model)
    rng = np.random.default_rng(0)
    beta1, beta2 = model.config.optimizer.betas
    names = ["blocks.0.ffn.up.weight", "blocks.0.ffn.up.bias", "final_norm.gamma"]
    expected = {name: [model.decoder.parameters[name].asnumpy().astype(float), 0.0, 0.0] for name in names}

    for count in range(1, 4):
        gradients = {
            name: rng.standard_normal(parameter.shape).astype(np.float32)
            for name, parameter in model.decoder.parameters.items()
        }
        step.optimizer.update([as_tensor(gradient) for gradient in gradients.values()], count, 0.01, 0.5)
        for name in names:
            w, m, v = expected[name]
            g = 0.5 * gradients[name].astype(float)
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            decay = 0.1 if name.endswith("weight") else 0.0
            m_hat = m / (1 - beta1**count)
            v_hat = v / (1 - beta2**count)
            w = w - 0.01 * decay * w - 0.01 * m_hat / (np.sqrt(v_hat) + 1e-8)
            expected[name] = [w, m, v]
            np.testing.assert_allclose(model.decoder.parameters[name].asnumpy(), w, rtol=3e-5, atol=1e-6)


def test_plan_and_device_agree_on_the_permutation(tiny_overrides):
    """The device derives counts from tokens and table; they must equal those of the plan."""
    from ascend_ops.rre_dispatch import rre_dispatch

    model, loader = open_tiny(tiny_overrides, data__domains_per_step="2")
    (batch,), (plan,) = planned(model, loader)
    tokens_T = batch.tokens_BS.reshape(-1)
    slots_T = np.repeat(np.arange(2, dtype=np.int32), len(tokens_T) // 2)
    x_TH = np.zeros((len(tokens_T), 1), np.float32)

    for layer in range(2):
        table_DV = np.ascontiguousarray(plan.tables_LDV[layer])
        _, counts_G, _, _ = rre_dispatch(*(as_tensor(array) for array in (x_TH, tokens_T, slots_T, table_DV)), 3)

        np.testing.assert_array_equal(counts_G.asnumpy().reshape(2, 3), plan.counts_LDA[layer])


def test_training_gives_up_after_many_skipped_steps(tiny_run):
    from mindpangu.errors import TrainingError
    from mindpangu.train.run import train

    overrides, folder = tiny_run
    changes = {"training.max_skipped_steps": "2", "lr_scheduler.learning_rate": "1e30", "training.max_norm": "1e30"}
    config = load_config(None, overrides | changes)
    set_device(config)
    run = open_run(config)

    with pytest.raises(TrainingError, match="2 steps in a row were skipped, the last one because"):
        train(run, log=lambda text: None)

    log = (folder / "log" / "rank_0" / "info.log").read_text()
    assert "was skipped (" in log
    assert "its batch: " in log
    assert " samples [" in log
    assert list((folder / "checkpoint").glob("iteration_*"))
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
