"""dense_adam: every parameter is updated in place by the formula of expert_adam, with every backend."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor

from ascend_ops.dense_adam import dense_adam, reference, squared_norm, update_scalars

SETTINGS = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1, "gradient_scale": 0.5}
SHAPES = [(3,), (40, 7), (1,), (200, 170), (5, 2, 3)] * 3


def parameters(rng, kind, squares=False):
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    arrays = [array**2 for array in arrays] if squares else arrays
    return ParameterTuple([Parameter(Tensor(array), name=f"{kind}.{i}") for i, array in enumerate(arrays)])


def test_every_parameter_and_moment_is_updated(backend):
    rng = np.random.default_rng(1)
    weights, moments1, moments2 = (parameters(rng, kind, kind == "v") for kind in "wmv")
    before = [[p.asnumpy().copy() for p in group] for group in (weights, moments1, moments2)]
    gradients = [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in SHAPES]
    decays = tuple(i % 2 == 0 for i in range(len(SHAPES)))
    module = backend("dense_adam")

    @ms.jit
    def update(scalars, *gradients):
        return module.dense_adam(weights, moments1, moments2, gradients, decays, scalars)

    count = update(Tensor(update_scalars(3, **SETTINGS)), *gradients)

    assert count.asnumpy().tolist() == [len(SHAPES)]
    expected = reference.dense_adam(*before, [each.asnumpy() for each in gradients], decays, 3, SETTINGS)
    for *found, wanted in zip(weights, moments1, moments2, expected, strict=True):
        for parameter, array in zip(found, wanted, strict=True):
            np.testing.assert_allclose(parameter.asnumpy(), array, rtol=1e-6, atol=1e-6)


def test_the_squared_norm_sums_all_arrays_with_their_factors(backend):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    factors_P = rng.random(len(SHAPES)).astype(np.float32)
    module = backend("dense_adam")

    @ms.jit
    def norm(factors_P, *gradients):
        return module.squared_norm(gradients, factors_P)

    found = norm(Tensor(factors_P), *map(Tensor, arrays))

    assert found.shape == (1,)
    assert float(found.asnumpy()[0]) == pytest.approx(reference.squared_norm(arrays, factors_P), rel=1e-6)


def test_scalars_hold_both_bias_corrections_and_the_scale():
    keep, beta1, beta2, gain1, gain2, step_size, eps, scale = update_scalars(3, **SETTINGS).tolist()

    assert (keep, beta1, beta2, scale) == pytest.approx((1 - 0.01 * 0.1, 0.8, 0.95, 0.5))
    assert (gain1, gain2) == pytest.approx((0.2 * 0.5, 0.05 * 0.25))
    assert step_size == pytest.approx(0.01 * np.sqrt(1 - 0.95**3) / (1 - 0.8**3))
    assert eps == pytest.approx(1e-6 * np.sqrt(1 - 0.95**3))


@pytest.mark.parametrize(
    ("shapes", "dtype", "decays", "error", "message"),
    [
        ([(3,), (2,)], np.float32, 2, ValueError, r"got \(3,\), \(3,\), \(3,\), \(2,\) for parameter 1"),
        ([(3,)], np.float32, 2, ValueError, "equal numbers of weights.*got 2, 2, 2, 1, 2"),
        ([(3,), (3,)], np.float32, 1, ValueError, "equal numbers of weights.*got 2, 2, 2, 2, 1"),
        ([(3,), (3,)], np.float16, 2, TypeError, "expected float32 only, got Float16, Float32"),
    ],
)
def test_an_update_with_other_gradients_is_refused(shapes, dtype, decays, error, message):
    weights, moments1, moments2 = (
        ParameterTuple([Parameter(Tensor(np.zeros(3, np.float32)), name=f"{kind}.{i}") for i in range(2)])
        for kind in "wmv"
    )

    @ms.jit
    def update(scalars, *gradients):
        return dense_adam(weights, moments1, moments2, gradients, (True,) * decays, scalars)

    with pytest.raises(error, match=message):
        update(Tensor(update_scalars(3, **SETTINGS)), *(Tensor(np.zeros(shape, dtype)) for shape in shapes))
    np.testing.assert_array_equal(weights[0].asnumpy(), np.zeros(3))


def test_a_norm_with_other_factors_is_refused():
    @ms.jit
    def norm(factors_P, *gradients):
        return squared_norm(gradients, factors_P)

    zeros = [Tensor(np.zeros(3, np.float32))] * 2
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"a factor for each of 2 gradients, got \({count},"):
            norm(Tensor(np.ones(count, np.float32)), *zeros)
    with pytest.raises(TypeError, match="squared_norm: expected float32 only"):
        norm(Tensor(np.ones(1, np.float32)), Tensor(np.zeros(3, np.float16)))
