"""The masked decoder against one in NumPy: logits, loss, and gradients with respect to the masks."""

import numpy as np
import pytest

from ascend_ops.grouped_ffn.reference import feed_forward
from mindpangu.model.coupling import KINDS, Units, layer_name
from mindpangu.model.initialization import dense_name, network_tensors


def numpy_logits(model, weights, batch, units, layers_L):
    """Returns the logits of PanGu-α and PanGu-π with masks, an independent implementation; float64 [T, V]."""
    count, length = batch.tokens_BS.shape
    size = model.hidden_size // model.num_heads
    channels = units.channels

    def norm(x, name):
        gamma = weights[f"{name}.gamma"]
        total = channels.sum()
        if model.norm == "rmsnorm":
            return x / np.sqrt((x**2 * channels).sum(-1, keepdims=True) / total + model.layernorm_epsilon) * gamma
        x = x - (x * channels).sum(-1, keepdims=True) / total
        variance = (x**2 * channels).sum(-1, keepdims=True) / total
        return x / np.sqrt(variance + model.layernorm_epsilon) * gamma + weights[f"{name}.beta"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def heads(x):
        return x.reshape(count, length, model.num_heads, size).transpose(0, 2, 1, 3)

    def rotated(x):
        if model.position != "rope":
            return x
        frequency = model.rope_theta ** (-2 * np.arange(size // 2) / size)
        turn = np.exp(1j * batch.positions_BS[:, None, :, None] * frequency)
        pairs = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * turn
        return np.concatenate([pairs.real, pairs.imag], -1)

    x = weights["word_embedding"][batch.tokens_BS.reshape(-1)]
    if model.position == "learned":
        x = x + weights["position_embedding"][batch.positions_BS.reshape(-1)]
    for layer in range(model.num_layers):
        name = layer_name(model, layer)
        queries = None
        if name == "query_layer":
            x = norm(x, "final_norm")
            queries = weights["query_embedding"][batch.positions_BS.reshape(-1)] * channels
        h = norm(x, f"{name}.attention_norm") * channels
        query = heads(linear(h if queries is None else queries, f"{name}.attention.query"))
        key, value = (heads(linear(h, f"{name}.attention.{part}")) for part in ("key", "value"))
        similarity = rotated(query) @ rotated(key).transpose(0, 1, 3, 2) / np.sqrt(size)
        similarity = np.where(np.tril(np.ones((length, length), bool)), similarity, -np.inf)
        share = np.exp(similarity - similarity.max(-1, keepdims=True))
        mixed = share / share.sum(-1, keepdims=True) @ value * units.heads[layer][:, None, None]
        added = linear(mixed.transpose(0, 2, 1, 3).reshape(count * length, -1), f"{name}.attention.output")
        if model.shortcut_reduction:
            u = linear(h, f"{name}.shortcut.down")
            gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            added = added + linear(gelu * units.bottleneck[layer], f"{name}.shortcut.up")
        x = x + layers_L[layer] * added
        network = {tensor: weights[f"{name}.ffn.{dense_name(tensor)}"] for tensor in network_tensors(model)}
        network["down"] = units.neurons[layer][:, None] * network["down"]
        activation = {"swiglu": "silu", "fast_gelu": "fast_gelu"}[model.activation]
        x = x + layers_L[layer] * feed_forward(norm(x, f"{name}.ffn_norm") * channels, network, activation)
    if not model.query_layer:
        x = norm(x, "final_norm")
    return x * channels @ weights["word_embedding" if model.tied_head else "head.weight"].T


def numpy_loss(model, weights, batch, units, layers_L):
    logits = numpy_logits(model, weights, batch, units, layers_L)
    largest = logits.max(1)
    log_sum = np.log(np.exp(logits - largest[:, None]).sum(1)) + largest
    return (log_sum - logits[np.arange(len(logits)), batch.targets_BS.reshape(-1)]).mean()


def soft_masks(model, seed=0):
    rng = np.random.default_rng(seed)
    full = Units.full(model)
    units = Units(**{kind: rng.uniform(0.2, 1.2, mask.shape).astype(np.float32) for kind, mask in full.items()})
    return units, rng.uniform(0.2, 1.2, model.num_layers).astype(np.float32)


@pytest.fixture(scope="module", params=["pangu_pi", "pangu_alpha_with_shortcut_and_series"])
def case(request, compiled):
    parent, loss = compiled(request.param)
    return parent, loss, {name: values.astype(np.float64) for name, values in parent.weights.items()}


def test_logits_and_loss_match_numpy(case):
    parent, loss, weights = case
    batch = loss.batches[0]
    two_layers = (Units.full(parent.model), np.array([1, 0, 0, 1], np.float32))

    for units, layers_L in (soft_masks(parent.model), two_layers):
        expected = numpy_logits(parent.model, weights, batch, units, layers_L)
        assert expected.std() > 0.3
        np.testing.assert_allclose(loss.logits(units, layers_L, batch), expected, atol=1e-4)
        expected = numpy_loss(parent.model, weights, batch, units, layers_L)
        assert loss.loss(units, layers_L, [batch]) == pytest.approx(expected, rel=1e-5)


def test_gradients_match_numpy(case):
    """Compares directional derivatives, one random direction per kind of mask, with central differences in float64."""
    parent, loss, weights = case
    batch = loss.batches[0]
    units, layers_L = soft_masks(parent.model)

    value, gradients = loss.gradients(units, layers_L, [batch])

    assert value == pytest.approx(numpy_loss(parent.model, weights, batch, units, layers_L), rel=1e-5)
    rng = np.random.default_rng(2)
    masks = {kind: mask.astype(np.float64) for kind, mask in units.items()} | {"layers": layers_L.astype(np.float64)}
    gradient_of = dict(gradients.units.items()) | {"layers": gradients.layers}

    def loss_at(changed):
        units = Units(**{kind: changed[kind] for kind in KINDS})
        return numpy_loss(parent.model, weights, batch, units, changed["layers"])

    for kind, mask in masks.items():
        direction = rng.standard_normal(mask.shape)
        above = loss_at(masks | {kind: mask + 1e-6 * direction})
        below = loss_at(masks | {kind: mask - 1e-6 * direction})
        expected = (above - below) / 2e-6
        assert (gradient_of[kind] * direction).sum() == pytest.approx(expected, rel=1e-3, abs=1e-5), kind


def test_the_masked_decoder_equals_the_model_if_all_masks_are_one(case):
    from mindspore import Tensor

    parent, loss, _ = case
    batch = loss.batches[0]
    rows = Tensor(batch.tokens_BS)
    positions = Tensor(batch.positions_BS)
    h_TH = parent.decoder.lower(rows, positions)
    x_TH, _ = parent.decoder.upper(h_TH, positions, (), ())
    expected = parent.decoder.upper.logits(x_TH, 0, None).asnumpy()

    logits = loss.logits(Units.full(parent.model), np.ones(parent.model.num_layers, np.float32), batch)

    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())


def test_batches_are_weighted_by_their_targets(compiled):
    parent, loss = compiled("pangu_pi")
    first = parent.batch(1)
    second = parent.batch(2)
    first.loss_mask_BS[:, 2:] = 0
    units = Units.full(parent.model)
    layers_L = np.ones(4, np.float32)
    first_loss, first_gradients = loss.gradients(units, layers_L, [first])
    second_loss, second_gradients = loss.gradients(units, layers_L, [second])

    both_loss, both_gradients = loss.gradients(units, layers_L, [first, second])

    assert both_loss == pytest.approx((4 * first_loss + 14 * second_loss) / 18, rel=1e-6)
    expected = (4 * first_gradients.units.neurons + 14 * second_gradients.units.neurons) / 18
    np.testing.assert_allclose(both_gradients.units.neurons, expected, atol=1e-7)
