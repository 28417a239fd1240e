"""PanGu-π's architecture against a decoder in NumPy: scores, gradients, and parts that are set to do nothing."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from ascend_ops.grouped_ffn.reference import feed_forward
from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.model.decoder import Decoder
from mindpangu.model.initialization import dense_name, initial_series, network_tensors, output_std
from mindpangu.model.vocabularies import Vocabularies

SMALL = {
    "model.num_layers": "2",
    "model.rre_layers": "0",
    "model.hidden_size": "12",
    "model.ffn_hidden_size": "20",
    "model.num_heads": "3",
    "model.seq_length": "7",
    "model.vocab_size": "30",
    "model.init_std": "0.3",
    "model.layernorm_epsilon": "0.01",
}
PLAIN = {
    "model.query_layer": "false",
    "model.position": "rope",
    "model.norm": "rmsnorm",
    "model.activation": "swiglu",
    "model.biases": "false",
    "model.tied_head": "false",
}
PI = PLAIN | {"model.series_terms": "2", "model.shortcut_reduction": "3"}


def build(**changes):
    words = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, words)
    decoder = Decoder(config, Vocabularies.build(config, build_domains(config)))
    return config, decoder


def tokens(config, batch=2):
    rng = np.random.default_rng(0)
    length = config.model.seq_length
    return rng.integers(0, config.model.vocab_size, (batch, length)), np.tile(np.arange(length), (batch, 1))


def scores(decoder, tokens_BS, positions_BS):
    """float32 [T, V], computed by the decoder."""
    rows_BS, positions_BS = (Tensor(array.astype(np.int32)) for array in (tokens_BS, positions_BS))
    h_TH = decoder.lower(rows_BS, positions_BS)
    x_TH, _ = decoder.upper(h_TH, positions_BS, (), ())
    return decoder.upper.logits(x_TH, 0, None)


def numpy_scores(config, weights, tokens_BS, positions_BS):
    """float64 [T, V]: PanGu-π as in its paper, written independently."""
    model = config.model
    batch, length = tokens_BS.shape
    size = model.hidden_size // model.num_heads

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.layernorm_epsilon) * weights[f"{name}.gamma"]

    def heads(x):
        return x.reshape(batch, length, model.num_heads, size).transpose(0, 2, 1, 3)

    def rotated(x):
        # as complex numbers: multiplying by e^iφ rotates by φ
        frequency = model.rope_theta ** (-2 * np.arange(size // 2) / size)
        turn = np.exp(1j * positions_BS[:, None, :, None] * frequency)
        pairs = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * turn
        return np.concatenate([pairs.real, pairs.imag], -1)

    x = weights["word_embedding"][tokens_BS.reshape(-1)]
    for layer in range(model.num_layers):
        name = f"blocks.{layer}"
        h = norm(x, f"{name}.attention_norm")
        query, key, value = (
            heads(h @ weights[f"{name}.attention.{part}.weight"]) for part in ("query", "key", "value")
        )
        similarity = rotated(query) @ rotated(key).transpose(0, 1, 3, 2) / np.sqrt(size)
        similarity = np.where(np.tril(np.ones((length, length), bool)), similarity, -np.inf)
        share = np.exp(similarity - similarity.max(-1, keepdims=True))
        mixed = share / share.sum(-1, keepdims=True) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch * length, -1)
        attended = mixed @ weights[f"{name}.attention.output.weight"]
        if model.shortcut_reduction:
            u = h @ weights[f"{name}.shortcut.down.weight"]
            gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            attended = attended + gelu @ weights[f"{name}.shortcut.up.weight"]
        x = x + attended
        network = {tensor: weights[f"{name}.ffn.{dense_name(tensor)}"] for tensor in network_tensors(model)}
        x = x + feed_forward(norm(x, f"{name}.ffn_norm"), network, "silu")
    return norm(x, "final_norm") @ weights["head.weight"].T


@pytest.fixture(scope="module")
def pi():
    config, decoder = build(**PI)
    rng = np.random.default_rng(1)
    for name, parameter in decoder.parameters.items():
        if name.endswith((".gamma", ".scale", ".shift")):  # so that they do something
            parameter.set_data(Tensor((parameter.asnumpy() + 0.3 * rng.standard_normal(parameter.shape)).astype("f4")))
    weights = {name: parameter.asnumpy().astype(np.float64) for name, parameter in decoder.parameters.items()}
    return config, decoder, weights


def test_scores_are_those_of_numpy(pi):
    config, decoder, weights = pi
    tokens_BS, positions_BS = tokens(config)

    expected = numpy_scores(config, weights, tokens_BS, positions_BS)

    assert expected.std() > 0.5
    np.testing.assert_allclose(scores(decoder, tokens_BS, positions_BS).asnumpy(), expected, atol=2e-5)


def test_gradients_are_those_of_numpy(pi):
    """Compares every parameter's gradient along a random direction with central differences in NumPy, float64."""
    config, decoder, weights = pi
    tokens_BS, positions_BS = tokens(config)
    rng = np.random.default_rng(2)
    dout_TV = rng.standard_normal((tokens_BS.size, config.model.vocab_size))

    def loss():
        return (scores(decoder, tokens_BS, positions_BS) * Tensor(dout_TV.astype(np.float32))).sum()

    parameters = ParameterTuple(list(decoder.parameters.values()))
    gradients = ms.grad(loss, None, parameters)()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = rng.standard_normal(parameter.shape)
        sides = []
        for step in (1e-6, -1e-6):
            moved = weights[parameter.name] + step * direction
            sides.append(numpy_scores(config, weights | {parameter.name: moved}, tokens_BS, positions_BS))
        expected = ((sides[0] - sides[1]) * dout_TV).sum() / 2e-6
        found = (gradient.asnumpy().astype(np.float64) * direction).sum()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3), parameter.name


def test_one_term_of_scale_1_and_shift_0_and_a_shortcut_of_zeros_are_the_plain_model():
    config, plain = build(**PLAIN)
    _, with_parts = build(**PLAIN, **{"model.series_terms": "1", "model.shortcut_reduction": "3"})
    tokens_BS, positions_BS = tokens(config)

    expected = scores(plain, tokens_BS, positions_BS).asnumpy()

    assert not np.array_equal(scores(with_parts, tokens_BS, positions_BS).asnumpy(), expected)
    for name, parameter in with_parts.parameters.items():
        if ".shortcut.up." in name:
            parameter.set_data(ops.zeros_like(parameter))
    np.testing.assert_array_equal(scores(with_parts, tokens_BS, positions_BS).asnumpy(), expected)


@pytest.mark.parametrize("key", PI)
def test_each_part_is_switched_by_itself(key):
    """Switches one key on a PanGu-α model, which otherwise keeps its query layer and biases."""
    config, decoder = build(**{key: PI[key]})
    tokens_BS, positions_BS = tokens(config)
    _, usual = build()

    found, before = (scores(each, tokens_BS, positions_BS).asnumpy() for each in (decoder, usual))

    assert np.isfinite(found).all()
    assert not np.allclose(found, before, atol=1e-3) or key == "model.biases"  # biases start at zero


def test_terms_of_a_series_start_apart_around_zero():
    series = initial_series(3, 2)

    assert series["shift"].tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert (series["scale"] == 1).all()
    assert initial_series(1, 2)["shift"].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("constant", [0.02] * 2), ("depth_scaled", [0.01] * 2), ("layer_wise", [0.02 / 2**0.5, 0.01])],
)
def test_initialization_schemes(scheme, expected):
    words = SMALL | {"model.init_std": "0.02", "model.initialization": scheme, "model.hidden_size": "300"}
    config = load_config(None, words)

    assert [output_std(config.model, layer) for layer in range(2)] == pytest.approx(expected)
    decoder = Decoder(config, Vocabularies.build(config, build_domains(config)))
    for name, std in zip(("blocks.0", "query_layer"), expected, strict=True):
        found = decoder.parameters[f"{name}.attention.output.weight"].asnumpy().std()
        assert found == pytest.approx(std, rel=0.02)
        assert decoder.parameters[f"{name}.attention.query.weight"].asnumpy().std() == pytest.approx(0.02, rel=0.02)
