"""The importances against NumPy formulas, and the units that they keep."""

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, value_and_grad

from mindpangu.model.coupling import CHANNELS, HEADS, KINDS, NEURONS, Units, unit_shapes
from mindpangu.tiny.inheritance import importance
from mindpangu.tiny.inheritance.importance import largest, layer_mask

LAYERS = (0, 1, 3)


@pytest.fixture(scope="module")
def pi(compiled):
    return compiled("pangu_pi")


def weights_of_unit(small_model, kind, layer, unit):
    """Returns all counted weights of one unit as a flat array, written out name by name."""
    weights = small_model.weights
    size = small_model.model.hidden_size // small_model.model.num_heads
    columns = slice(unit * size, (unit + 1) * size)
    parts = []
    if kind == HEADS:
        parts += [weights[f"blocks.{layer}.attention.{part}.weight"][:, columns] for part in ("query", "key", "value")]
        parts += [weights[f"blocks.{layer}.attention.output.weight"][columns]]
    elif kind == NEURONS:
        parts += [weights[f"blocks.{layer}.ffn.{part}.weight"][:, unit] for part in ("gate", "up")]
        parts += [weights[f"blocks.{layer}.ffn.down.weight"][unit]]
    elif kind == CHANNELS:
        parts += [weights["word_embedding"][:, unit], weights["head.weight"][:, unit]]
        for layer in LAYERS:
            name = f"blocks.{layer}"
            read = ("attention.query", "attention.key", "attention.value", "shortcut.down", "ffn.gate", "ffn.up")
            parts += [weights[f"{name}.{part}.weight"][unit] for part in read]
            written = ("attention.output", "shortcut.up", "ffn.down")
            parts += [weights[f"{name}.{part}.weight"][:, unit] for part in written]
    else:
        parts += [weights[f"blocks.{layer}.shortcut.down.weight"][:, unit]]
        parts += [weights[f"blocks.{layer}.shortcut.up.weight"][unit]]
    return np.concatenate([values.reshape(-1).astype(np.float64) for values in parts])


@pytest.mark.parametrize("kind", KINDS)
def test_l1_and_l2_are_sums_over_all_weights_of_a_unit(kind, pi):
    parent, _ = pi

    l1 = importance.l1(parent.model, parent.weights, LAYERS)
    l2 = importance.l2(parent.model, parent.weights, LAYERS)

    for unit in (0, unit_shapes(parent.model)[kind][-1] - 1):
        for layer in (0, 3):
            weights = weights_of_unit(parent, kind, layer, unit)
            index = unit if kind == CHANNELS else (layer, unit)
            assert l1.of(kind)[index] == pytest.approx(abs(weights).sum(), rel=1e-6)
            assert l2.of(kind)[index] == pytest.approx(np.sqrt((weights**2).sum()), rel=1e-6)


def test_biases_and_positions_count_but_norms_do_not(small, models):
    parent = small(**models["pangu_alpha"])
    weights = parent.weights
    before = importance.l1(parent.model, weights, (0, 1, 2, 3))

    weights["query_layer.ffn.up.bias"][5] += 100 * np.sign(weights["query_layer.ffn.up.bias"][5])
    weights["position_embedding"][2, 7] += 10 * np.sign(weights["position_embedding"][2, 7])
    weights["query_layer.ffn_norm.gamma"][3] += 1000
    after = importance.l1(parent.model, weights, (0, 1, 2, 3))

    changed = {kind: np.argwhere(abs(after.of(kind) - values) > 1e-3).tolist() for kind, values in before.items()}
    assert changed == {"channels": [[7]], "heads": [], "neurons": [[3, 5]], "bottleneck": []}


def test_taylor_of_heads_and_neurons_is_the_sum_of_weight_times_gradient(pi):
    """The weights are those of the matrix behind the gate, the gradients those of the model itself."""
    parent, loss = pi
    names = [f"blocks.2.{part}.weight" for part in ("attention.output", "ffn.down", "shortcut.up")]
    parameters = ParameterTuple([parent.decoder.parameters[name] for name in names])

    def mean_loss():
        total = 0
        for batch in loss.batches:
            rows = Tensor(batch.tokens_BS)
            positions = Tensor(batch.positions_BS)
            x_TH, _ = parent.decoder.upper(parent.decoder.lower(rows, positions), positions, (), ())
            vocabulary_B = Tensor(np.zeros(len(batch.targets_BS), np.int32))
            losses_BS = parent.decoder.upper.token_losses(x_TH, Tensor(batch.targets_BS), 0, vocabulary_B)
            total = total + losses_BS.sum()
        return total / sum(batch.targets_BS.size for batch in loss.batches)

    _, gradients = value_and_grad(mean_loss, None, parameters)()
    products = [
        (parameter.asnumpy() * gradient.asnumpy()).astype(np.float64).sum(1)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    size = parent.model.hidden_size // parent.model.num_heads

    values = importance.taylor(loss, tuple(range(4)))

    np.testing.assert_allclose(values.heads[2], abs(products[0].reshape(-1, size).sum(1)), atol=1e-6)
    np.testing.assert_allclose(values.neurons[2], abs(products[1]), atol=1e-6)
    np.testing.assert_allclose(values.bottleneck[2], abs(products[2]), atol=1e-6)
    assert values.neurons[2].max() > 1e-4


def test_taylor_ignores_removed_layers(pi):
    _, loss = pi

    values = importance.taylor(loss, LAYERS)

    assert not values.neurons[2].any()
    assert values.neurons[3].all()


def test_random_importance_depends_on_the_seed(pi):
    parent, _ = pi

    first, again, other = (importance.random(parent.model, seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.neurons, again.neurons)
    assert (first.neurons != other.neurons).any()
    assert {kind: values.shape for kind, values in first.items()} == unit_shapes(parent.model)


def test_the_largest_are_kept_in_order_and_exactly_as_many_as_the_child_has(pi):
    parent, _ = pi
    child = parent.child().model
    values = importance.random(parent.model, 0)

    units = largest(values, child)

    assert {kind: kept.shape[-1] for kind, kept in units.items()} == {
        kind: shape[-1] for kind, shape in unit_shapes(child).items()
    }
    for kind, kept in units.items():
        assert (np.diff(kept, axis=-1) > 0).all()
        kept_values = np.take_along_axis(values.of(kind), kept, -1)
        least = np.sort(values.of(kind), -1)[..., -kept.shape[-1]]
        assert (kept_values.min(-1) == least).all()


def test_ties_go_to_the_first_units(pi):
    parent, _ = pi
    child = parent.child().model

    units = largest(Units.full(parent.model), child)

    np.testing.assert_array_equal(units.channels, np.arange(child.hidden_size))


def test_the_layer_mask_is_one_for_the_given_layers(pi):
    parent, _ = pi

    assert layer_mask(parent.model, LAYERS).tolist() == [1, 1, 0, 1]


def test_an_unknown_method_is_refused():
    from mindpangu.errors import ConfigError

    with pytest.raises(ConfigError, match="--neurons is 'l3'; choose one of l1, l2, taylor, learned, random"):
        importance.require_method("l3")
