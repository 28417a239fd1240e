"""fp16: which parts compute in it, how far losses and gradients are from fp32; fp32 computes without casts."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from ascend_ops.causal_attention import composed as attention_ops
from ascend_ops.norm import composed as norm_ops
from ascend_ops.tied_head_loss import composed as head_ops
from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.data import Loader, heldout_batches
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError, ConfigError
from mindpangu.language_model import as_tensor, load_model
from mindpangu.model.attention import Attention
from mindpangu.model.decoder import Decoder
from mindpangu.model.layers import Init, Linear
from mindpangu.model.vocabularies import MIXED, Vocabularies
from mindpangu.train.checkpointing import load_weights
from mindpangu.train.run import open_run, set_device, train
from mindpangu.train.step import TrainStep


def config_of(overrides, precision, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, overrides | {"context.precision": precision} | changes)
    set_device(config)
    return config


def opened(overrides, precision, **changes):
    """Returns (train step, function that plans its next batches) of the prepared tiny run, with initial weights."""
    config = config_of(overrides, precision, **changes)
    run = open_run(config)
    run.model.store.initialize()
    loader = Loader(run.shards, run.model.domains, config)

    def planned():
        batches = loader.next_step().micro_batches
        return batches, [run.model.planner.plan(each) for each in batches]

    return TrainStep(run.model), planned


def unscaled(step, gradients):
    """Returns name → float64 gradient without the loss scale, including experts."""
    tensors = {name: gradient.asnumpy() for name, gradient in gradients.dense.items()}
    for (layer, domain), arrays in step.experts.gradients().items():
        tensors |= {f"experts.{layer}.{domain}.{i}": array for i, array in enumerate(arrays)}
    return {name: array.astype(np.float64) / step.loss_scale.value for name, array in tensors.items()}


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("rre_layers", ["2", "0"])
def test_gradients_and_losses_follow_those_of_fp32(tiny_overrides, rre_layers):
    exact, next_exact = opened(tiny_overrides, "fp32", model__rre_layers=rre_layers)
    half, next_half = opened(tiny_overrides, "fp16", model__rre_layers=rre_layers)
    batches, plans = next_exact()
    next_half()
    expected, actual = (unscaled(step, step.gradients(batches, plans)) for step in (exact, half))
    assert expected.keys() == actual.keys()
    total = np.sqrt(sum(np.square(gradient).sum() for gradient in expected.values()))
    for name, gradient in expected.items():
        if name.endswith("key.bias"):  # zero, for softmax does not see it: nothing but rounding
            assert max(np.linalg.norm(gradient), np.linalg.norm(actual[name])) < 1e-7 * total
        else:
            assert relative_error(actual[name], gradient) < 3e-3, name
    assert relative_error(actual["word_embedding"], expected["word_embedding"]) > 1e-5  # it was fp16

    distances = []
    for _ in range(20):
        one = exact.run(batches, plans, 3e-3)
        other = half.run(batches, plans, 3e-3)
        assert (one.skipped, other.skipped) == (None, None)
        assert (one.loss_scale, other.loss_scale) == (1.0, 65536.0)
        assert other.global_norm == pytest.approx(one.global_norm, rel=5e-3)
        assert other.domain_loss == pytest.approx(one.domain_loss, abs=2e-3)
        assert other.traffic.activated == one.traffic.activated
        distances.append(abs(one.loss - other.loss))
        batches, plans = next_exact()
        next_half()
    assert 0 < max(distances) < 1e-3
    assert other.loss < 5.8  # from 6.0


def test_each_tensor_has_its_number_format(tiny_overrides, monkeypatch):
    step, planned = opened(tiny_overrides, "fp16")
    model = step.model
    (batch,), (plan,) = planned()

    inputs = model.inputs(batch.tokens_BS, batch.positions_BS, plan)
    h_TH = step.functions.lower_forward(inputs.rows_BS, inputs.positions_BS)

    assert h_TH.dtype == ms.float16

    received = []
    monkeypatch.setattr(step.experts, "receive", lambda plan, gradients: received.extend(gradients))

    gradients = step.gradients([batch], [plan])

    assert {slab.dtype for slab in step.experts.slabs(plan)} == {ms.float16}
    assert {gradient.dtype for gradient in gradients.dense.values()} == {ms.float32}
    assert {gradient.dtype for gradient in received} == {ms.float16}

    monkeypatch.undo()
    step.run([batch], [plan], 1e-3)

    assert {parameter.dtype for parameter in model.decoder.parameters.values()} == {ms.float32}
    assert {slab.dtype for slab in model.store.lookup((0,))} == {np.dtype(np.float32)}


def test_norms_softmax_loss_and_embeddings_are_fp32_and_matrix_products_fp16(tiny_overrides, monkeypatch):
    """Runs operator by operator (PyNative) and records the operators."""
    step, planned = opened(tiny_overrides, "fp16")
    decoder = step.decoder
    (batch,), (plan,) = planned()
    inputs = step.model.inputs(batch.tokens_BS, batch.positions_BS, plan)
    slabs = [as_tensor(slab.astype(np.float16)) for slab in step.model.store.lookup(plan.domain_of_slot)]
    seen = []
    gathered = []
    gather = ops.gather

    def recorded(name, function):
        def call(x, *others):
            seen.append((name, *(str(each.dtype) for each in (x, *others) if isinstance(each, Tensor))))
            return function(x, *others)

        return call

    def gather_and_record(table, *others):
        if isinstance(table, Parameter):
            gathered.append(table.name)
        return gather(table, *others)

    monkeypatch.setattr(ops, "gather", gather_and_record)
    for name in ("matmul", "exp", "log"):
        monkeypatch.setattr(ops, name, recorded(name, getattr(ops, name)))
    for module, attribute, name in (
        (attention_ops, "_score", "BatchMatMul"),
        (attention_ops, "_mix", "BatchMatMul"),
        (attention_ops, "_softmax", "Softmax"),
        (head_ops, "_score", "MatMul"),
    ):
        monkeypatch.setattr(module, attribute, recorded(name, getattr(module, attribute)))
    normalize = norm_ops._normalize
    monkeypatch.setattr(norm_ops, "_normalize", lambda epsilon: recorded("LayerNorm", normalize(epsilon)))
    h_TH = decoder.lower(inputs.rows_BS, inputs.positions_BS)
    routing = (inputs.tokens_BS, inputs.domain_slots_B, inputs.tables_LDV, 0, ())
    x_TH, _ = decoder.upper(h_TH, inputs.positions_BS, routing, slabs)
    losses_BS = decoder.upper.token_losses(
        x_TH, Tensor(batch.targets_BS), inputs.vocabulary, inputs.vocabulary_of_sample_B
    )
    assert (x_TH.dtype, losses_BS.dtype) == (ms.float16, ms.float32)
    # the tables themselves, not fp16 copies, in which the gradients of frequent tokens would stop growing
    assert gathered == ["word_embedding", "position_embedding", "query_embedding"]
    assert set(seen) == {
        ("LayerNorm", "Float32", "Float32", "Float32"),
        ("Softmax", "Float32"),
        ("exp", "Float32"),
        ("log", "Float32"),
        ("BatchMatMul", "Float16", "Float16"),
        ("MatMul", "Float16", "Float16"),
        ("matmul", "Float16", "Float16"),
    }


def no_cast(x, dtype):
    return x


@pytest.mark.slow
def test_fp32_computes_the_bits_of_a_model_without_precisions(tiny_overrides, monkeypatch):
    def bits(step, planned):
        results = [dataclasses.replace(step.run(*planned(), 1e-3), traffic=None) for _ in range(2)]
        batches, plans = planned()
        losses_BS = step.model.token_losses(batches[0])
        return results, losses_BS, unscaled(step, step.gradients(batches, plans))

    results, losses_BS, gradients = bits(*opened(tiny_overrides, "fp32", training__loss_scale="1024"))
    for module in ("decoder", "embedding", "layers"):
        monkeypatch.setattr(f"mindpangu.model.{module}.cast", no_cast)
    plain_results, plain_losses_BS, plain_gradients = bits(*opened(tiny_overrides, "fp32"))
    assert results == plain_results
    np.testing.assert_array_equal(losses_BS, plain_losses_BS)
    for name, gradient in plain_gradients.items():
        np.testing.assert_array_equal(gradients[name], gradient, err_msg=name)


def test_scores_beyond_the_range_of_fp16_stay_finite(tiny_overrides):
    """Queries and keys of 100: their product over 8 dimensions is 80,000, scaled it is 28,000."""
    config = config_of(tiny_overrides, "fp16")
    attention = Attention(Init(config), "attention", 0.02)
    for linear in (attention.query, attention.key, attention.value):
        linear.weight.set_data(Tensor(np.eye(16, dtype=np.float32)))
    x_TH = Tensor(np.full((4, 16), 100, np.float16))

    out_TH = attention(x_TH, Tensor(np.arange(4, dtype=np.int32)[None]))

    assert np.isfinite(out_TH.asnumpy()).all()


def test_a_bias_gradient_over_many_tokens_is_summed_in_fp32(tiny_overrides):
    """The sum is computed in fp32: fp16 cannot represent 5001."""
    linear = Linear(Init(config_of(tiny_overrides, "fp16")), "linear", 4, 3, 0.02)
    sums = ms.grad(lambda x: linear(x).sum(), None, linear.trainable_params())(Tensor(np.ones((5001, 4), np.float16)))
    np.testing.assert_array_equal(sums[1].asnumpy(), np.full(3, 5001, np.float32))


def test_logits_of_a_batch_with_two_vocabularies_are_finite(tiny_overrides):
    vocabularies = "[{name: a, vocab_size: 5, domains: [zh, en]}, {name: b, vocab_size: 4, domains: [bilingual, code]}]"
    config = config_of(tiny_overrides, "fp16", domains__vocabularies=vocabularies)
    upper = Decoder(config, Vocabularies.build(config, build_domains(config))).upper
    x_TH = Tensor(np.ones((4, 16), np.float16))
    vocabulary_of_sample_B = Tensor(np.array([0, 1], np.int32))

    logits_TV = upper.logits(x_TH, MIXED, vocabulary_of_sample_B)

    assert logits_TV.dtype == ms.float32
    assert (logits_TV.asnumpy()[:2, 5:] == -1e9).all()
    assert (logits_TV.asnumpy()[2:, :5] == -1e9).all()


def test_micro_batches_add_up_in_fp32(tiny_overrides):
    """The same batch twice gives its gradient: each contributes exactly half."""
    step, planned = opened(tiny_overrides, "fp16")
    batches, plans = planned()
    one = step.gradients(batches, plans)
    alone = {key: [array.copy() for array in arrays] for key, arrays in step.experts.gradients().items()}

    two = step.gradients(batches * 2, plans * 2)

    assert two.loss == one.loss
    for key, arrays in step.experts.gradients().items():
        for doubled, single in zip(arrays, alone[key], strict=True):
            assert doubled.dtype == np.float32
            np.testing.assert_allclose(doubled, single, rtol=2e-3, atol=1e-6)
    assert step.run(batches * 2, plans * 2, 1e-3).skipped is None


def test_the_norm_of_fp16_gradients_does_not_overflow(tiny_overrides):
    """The squares exceed fp16, and their sum exceeds 65504 times the largest of them."""
    step, planned = opened(tiny_overrides, "fp16")
    _, (plan,) = planned()
    step.experts.begin([plan])
    gradients = [ops.full_like(slab, 60_000) for slab in step.experts.slabs(plan)]
    step.experts.receive(plan, gradients)
    expert = sum(int(np.prod(shape)) for shape in step.model.store.shapes.values())
    exact = float(np.float16(60_000)) ** 2 * expert * step.experts.traffic.activated

    assert step.experts.squared_norm() == pytest.approx(exact, rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_holds_fp32_and_loads_in_either_precision(tiny_run):
    overrides, folder = tiny_run
    config = config_of(overrides, "fp16", training__steps="2", lr_scheduler__warmup_steps="1")
    run = open_run(config)
    train(run, log=lambda text: None)
    reader = CheckpointReader(folder / "checkpoint" / "iteration_00000002")
    half = load_model(reader)
    assert half.config.context.precision == "fp16"
    exact = open_run(config_of(overrides, "fp32")).model
    load_weights(reader, exact)
    for name, parameter in run.model.decoder.parameters.items():
        for model in (half, exact):
            np.testing.assert_array_equal(model.decoder.parameters[name].asnumpy(), parameter.asnumpy())
    np.testing.assert_array_equal(half.store.weights[0][1]["up"], run.model.store.weights[0][1]["up"])

    (batch, *_) = heldout_batches(run.shards, "en", config, 4)
    losses_BS = half.token_losses(batch)
    logits_BV = half.next_token_logits(batch.tokens_BS, 1, 9)
    np.testing.assert_array_equal(losses_BS, run.model.token_losses(batch))
    assert (losses_BS.dtype, logits_BV.dtype) == (np.float32, np.float32)
    for actual, expected in (
        (losses_BS, exact.token_losses(batch)),
        (logits_BV, exact.next_token_logits(batch.tokens_BS, 1, 9)),
    ):
        assert 0 < np.abs(actual - expected).max() < 2e-3

    changed = config_of(overrides, "fp32", training__steps="3", training__loss_scale="1024")
    with pytest.raises(CheckpointError, match=r"precision was 'fp16', is 'fp32'.*training\.loss_scale was 65536"):
        train(open_run(changed), resume=True, log=lambda text: None)


def test_bf16_is_refused(tiny_overrides):
    with pytest.raises(ConfigError, match="the CPU has no bf16 kernels"):
        config_of(tiny_overrides, "bf16")
    config = load_config(None, tiny_overrides | {"context.precision": "bf16", "context.device_target": "Ascend"})
    with pytest.raises(ConfigError, match="bf16; this version computes in fp32 or fp16"):
        open_run(config)
