"""Dense Adam equals the AdamW formula and is compiled once, even for the parameters of a deep model."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from mindspore.graph.api import ms_compile_cache

from mindpangu.config import OptimizerConfig
from mindpangu.parallel.data_parallel import DataGroup
from mindpangu.train.optimizer import DenseAdam, is_decayed

SETTINGS = OptimizerConfig(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)


def make_adam(count):
    """Returns (dense Adam, its `count` parameters); every fourth parameter is a bias."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    random = np.random.default_rng(0)
    names = [f"layer.{index}.{'bias' if index % 4 == 3 else 'weight'}" for index in range(count)]
    parameters = {
        name: Parameter(Tensor(random.standard_normal((2, 3)).astype(np.float32)), name=name) for name in names
    }
    return DenseAdam(parameters, SETTINGS), parameters


def some_gradients(parameters, seed):
    random = np.random.default_rng(seed)
    return [Tensor(random.standard_normal(p.shape).astype(np.float32)) for p in parameters.values()]


def test_updates_equal_the_adamw_formula():
    optimizer, parameters = make_adam(4)
    state = {name: [p.asnumpy().astype(np.float64), 0.0, 0.0] for name, p in parameters.items()}

    for step in (1, 2, 3):
        gradients = some_gradients(parameters, step)
        rate = 0.1 / step
        scale = 0.5
        optimizer.update(gradients, step, rate, scale)
        for (name, (weight, first, second)), gradient in zip(state.items(), gradients, strict=True):
            gradient = gradient.asnumpy().astype(np.float64) * scale
            if not name.endswith("bias"):
                weight = weight * (1 - rate * 0.1)
            first = 0.8 * first + 0.2 * gradient
            second = 0.95 * second + 0.05 * gradient**2
            corrected = np.sqrt(second / (1 - 0.95**step)) + 1e-3
            state[name] = [weight - rate * first / (1 - 0.8**step) / corrected, first, second]

    for name, (weight, first, second) in state.items():
        np.testing.assert_allclose(parameters[name].asnumpy(), weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.moment1[name].asnumpy(), first, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.moment2[name].asnumpy(), second, rtol=1e-5, atol=1e-6)


class SecondOfTwo(DataGroup):
    """The second of two ranks, as if the first one had the same rows: an all-gather returns them twice."""

    def __init__(self):
        super().__init__()
        self.rank = 1
        self.size = 2

    def all_gather(self, rows):
        return ops.concat((rows, rows), 0)


def test_a_divided_update_changes_this_ranks_rows_and_gathers_those_of_all():
    random = np.random.default_rng(1)
    values = {"matrix": random.standard_normal((4, 3)), "vector.bias": random.standard_normal(3)}
    parameters = {name: Parameter(Tensor(array.astype(np.float32)), name=name) for name, array in values.items()}
    whole_parameters = {name: Parameter(Tensor(array.astype(np.float32)), name=name) for name, array in values.items()}
    divided = DenseAdam(parameters, SETTINGS, SecondOfTwo())
    alone = DenseAdam(whole_parameters, SETTINGS)
    gradients = some_gradients(parameters, 2)

    for step in (1, 2):
        divided.update([gradients[0][2:], gradients[1]], step, 0.1, 0.5)
        alone.update(gradients, step, 0.1, 0.5)

    expected = whole_parameters["matrix"].asnumpy()[2:]
    assert divided.moment1["matrix"].shape == (2, 3)
    np.testing.assert_array_equal(parameters["matrix"].asnumpy(), np.concatenate((expected, expected)))
    np.testing.assert_array_equal(parameters["vector.bias"].asnumpy(), whole_parameters["vector.bias"].asnumpy())
    for one, other in ((divided.moment1, alone.moment1), (divided.moment2, alone.moment2)):
        np.testing.assert_array_equal(one["matrix"].asnumpy(), other["matrix"].asnumpy()[2:])


def test_a_deep_model_is_compiled_and_only_once():
    """A 40-layer decoder has some 700 parameters; steps with other values must not compile again."""
    optimizer, parameters = make_adam(700)

    compiled = None
    for step in (1, 2, 3):
        gradients = some_gradients(parameters, step)
        optimizer.update(gradients, step, 0.1 / step, 1.0 / step)
        norm = optimizer.squared_norm(gradients)
        assert norm == pytest.approx(sum(float((g.asnumpy() ** 2).sum()) for g in gradients), rel=1e-5)
        compiled = compiled or len(ms_compile_cache)
        assert len(ms_compile_cache) == compiled


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("word_embedding", True),
        ("blocks.0.ffn.up.weight", True),
        ("blocks.0.ffn.up.bias", False),
        ("final_norm.gamma", False),
        ("final_norm.beta", False),
        ("blocks.0.ffn.series.scale", False),
        ("blocks.0.ffn.series.shift", False),
        ("bias", True),
    ],
)
def test_only_matrices_have_weight_decay(name, decayed):
    assert is_decayed(name) == decayed
