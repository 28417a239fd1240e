"""linear: x · weight + bias and its gradients, with every backend."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Parameter, ParameterTuple, Tensor, ops

from ascend_ops.linear import linear, linears, reference

CASES = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30), st.integers(1, 35), st.booleans())


def random_case(seed, rows, inputs, outputs, dtype):
    rng = np.random.default_rng(seed)
    shapes = ((rows, inputs), (inputs, outputs), (outputs,), (rows, outputs))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(backend, differentiate, error_of, case, has_bias, bound):
    *arrays, dout_TO = case if has_bias else (case[0], case[1], case[3])
    run = backend("linear").linear

    def function(*inputs):
        return (run(*inputs),)

    (out_TO,), gradients = differentiate(function, arrays, range(len(arrays)), dout_TO)

    exact = [array.astype(np.float64) for array in arrays]
    assert error_of(out_TO, reference.linear(*exact)) < bound
    expected = reference.linear_backward(dout_TO.astype(np.float64), *exact[:2])
    for gradient, wanted in zip(gradients, expected, strict=has_bias):
        assert error_of(gradient, wanted) < bound


@given(case=CASES)
@settings(max_examples=8, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, error_of, case):
    *shape, has_bias = case
    # float64 is the composed form's precision test; the kernel computes in float32
    dtype, bound = (np.float64, 1e-12) if backend.name == "composed" else (np.float32, 3e-6)
    check(backend, differentiate, error_of, random_case(*shape, dtype), has_bias, bound)


@pytest.mark.parametrize("shape", [(700, 300, 20), (40, 20, 1100), (300, 1100, 300)])
def test_results_of_many_tiles_equal_the_reference(backend, differentiate, error_of, shape):
    check(backend, differentiate, error_of, random_case(1, *shape, np.float32), True, 3e-6)


@pytest.mark.parametrize("has_biases", [False, True])
def test_several_matrices_of_one_input_equal_the_reference(backend, differentiate, error_of, has_biases):
    """Their results are multiplied by different factors, so that a mistaken one is noticed."""
    rng = np.random.default_rng(3)
    widths = (5, 130, 5)
    x_TI, dout_TO = (rng.standard_normal(shape).astype(np.float32) for shape in ((300, 20), (300, 140)))
    weights = [rng.standard_normal((20, width)).astype(np.float32) for width in widths]
    biases = [rng.standard_normal(width).astype(np.float32) for width in widths] if has_biases else []
    linears = backend("linear").linears

    def function(x_TI, *tensors):
        products = linears(x_TI, tensors[:3], tensors[3:])
        return (ops.concat(products, 1),)

    (out_TO,), gradients = differentiate(function, (x_TI, *weights, *biases), range(1 + 3 + len(biases)), dout_TO)

    exact = [array.astype(np.float64) for array in (x_TI, np.concatenate(weights, 1), dout_TO)]
    dx_TI, dweight_IO, dbias_O = reference.linear_backward(exact[2], *exact[:2])
    bias_O = np.concatenate(biases) if has_biases else None
    assert error_of(out_TO, reference.linear(*exact[:2], bias_O)) < 3e-6
    assert error_of(gradients[0], dx_TI) < 3e-6
    assert error_of(np.concatenate(gradients[1:4], 1), dweight_IO) < 3e-6
    if has_biases:
        assert error_of(np.concatenate(gradients[4:]), dbias_O) < 3e-6


@pytest.mark.parametrize("has_biases", [False, True])
def test_matrices_of_equal_shapes_that_are_parameters_are_not_confused(backend, has_biases):
    rng = np.random.default_rng(4)
    x_TI = rng.standard_normal((6, 8)).astype(np.float32)
    weights = ParameterTuple(
        [Parameter(Tensor(rng.standard_normal((8, 8)).astype(np.float32)), name=f"weight.{i}") for i in range(3)]
    )
    biases = ParameterTuple(
        [Parameter(Tensor(rng.standard_normal(8).astype(np.float32)), name=f"bias.{i}") for i in range(3)]
    )
    linears = backend("linear").linears

    @ms.jit
    def function(x_TI):
        return linears(x_TI, weights, biases) if has_biases else linears(x_TI, weights)

    for i, product in enumerate(function(Tensor(x_TI))):
        expected = reference.linear(x_TI, weights[i].asnumpy(), biases[i].asnumpy() if has_biases else None)
        np.testing.assert_allclose(product.asnumpy(), expected, atol=1e-5)


def test_a_bias_in_float32_is_added_to_rows_in_half_precision_before_they_are_rounded(backend):
    x_TI = Tensor(np.array([[2048.0]], np.float16))
    bias_O = Tensor(np.array([1.0 - 2.0**-12], np.float32))  # 2048 + 1 is 2048 in float16, but 2049 rounds to even

    out_TO = backend("linear").linear(x_TI, Tensor(np.array([[1.0]], np.float16)), bias_O)

    assert out_TO.dtype == ms.float16
    assert out_TO.asnumpy() == np.float16(2048 + 1 - 2.0**-12)


def test_wrong_arguments_are_refused():
    x, weight, bias, _ = (Tensor(array) for array in random_case(2, 4, 3, 2, np.float32))

    with pytest.raises(ValueError, match=r"linear: expected x_TI \[T, I\].*got \(4, 3\), \(4, 3\)"):
        linear(x, x)
    with pytest.raises(ValueError, match=r"linear: expected .*bias_O \[O\]"):
        linear(x, weight, bias[:1])
    with pytest.raises(TypeError, match=r"linear: expected .*of one dtype"):
        linear(x, weight.astype(ms.float16), bias)
    with pytest.raises(ValueError, match=r"linears: expected at least two weights.*got 1 and 0"):
        linears(x, (weight,))
    with pytest.raises(ValueError, match=r"linears: expected .*as many biases or none, got 2 and 1"):
        linears(x, (weight, weight), (bias,))
