"""norm: LayerNorm and RMSNorm, with and without the addition before them, with every backend."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.norm import add_layer_norm, layer_norm, reference

EPSILON = 2.0**-17  # float32 holds it exactly
NAMES = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")


def random_case(seed, rows, width, name, dtype):
    """Returns the arguments before epsilon."""
    rng = np.random.default_rng(seed)
    rows_TH = [rng.standard_normal((rows, width)) + 0.5 for _ in range(2 if name.startswith("add") else 1)]
    weights = [rng.standard_normal(width) for _ in range(2 if name.endswith("layer_norm") else 1)]
    return [array.astype(dtype) for array in (*rows_TH, *weights)]


def check(backend, differentiate, error_of, name, arrays, bound):
    """Compares with the reference. The gradients are those of ⟨norm, a⟩ + ⟨sum, b⟩."""
    norm = getattr(backend("norm"), name)
    adds = name.startswith("add")
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(arrays[0].shape).astype(arrays[0].dtype) for _ in range(2)]

    def function(*inputs):
        if not adds:
            found = norm(*inputs[:-2], EPSILON)
            return found * inputs[-2], found
        total, found = norm(*inputs[:-2], EPSILON)
        return found * inputs[-2] + total * inputs[-1], found, total

    ones_TH = np.ones_like(arrays[0])
    (_, *outputs), gradients = differentiate(function, (*arrays, *weights), range(len(arrays)), ones_TH)

    exact = [array.astype(np.float64) for array in (*arrays, *weights)]
    x_TH = exact[0] + exact[1] if adds else exact[0]
    plain = name.removeprefix("add_")
    of_norm = exact[2 if adds else 1 : -2]
    expected = [getattr(reference, plain)(x_TH, *of_norm, EPSILON)]
    dx_TH, *dweights = getattr(reference, f"{plain}_backward")(exact[-2], x_TH, of_norm[0], EPSILON)
    if adds:
        expected += [x_TH]
        dx_TH = dx_TH + exact[-1]
        dweights = [dx_TH, *dweights]
    for found, wanted in zip([*outputs, *gradients], [*expected, dx_TH, *dweights], strict=True):
        assert error_of(found, wanted) < bound


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), width=st.integers(6, 35))
@settings(max_examples=3, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, error_of, name, seed, rows, width):
    dtype, bound = (np.float64, 1e-11) if backend.name == "composed" else (np.float32, 1e-5)
    check(backend, differentiate, error_of, name, random_case(seed, rows, width, name, dtype), bound)


@pytest.mark.parametrize("name", NAMES)
def test_many_blocks_of_rows_equal_the_reference(backend, differentiate, error_of, name):
    check(backend, differentiate, error_of, name, random_case(1, 700, 96, name, np.float32), 3e-6)


def test_rows_in_half_precision_are_normalized_in_float32(backend):
    rng = np.random.default_rng(1)
    x_TH = (300 * rng.standard_normal((3, 64))).astype(np.float16)  # squares overflow float16
    gamma_H, beta_H = (Tensor(rng.standard_normal(64).astype(np.float32)) for _ in range(2))

    out_TH = backend("norm").layer_norm(Tensor(x_TH), gamma_H, beta_H, EPSILON)

    expected = reference.layer_norm(x_TH.astype(np.float64), gamma_H.asnumpy(), beta_H.asnumpy(), EPSILON)
    assert out_TH.dtype == ms.float16
    assert np.abs(out_TH.asnumpy() - expected).max() < 1e-2


def test_wrong_arguments_are_refused():
    x_TH, gamma_H, beta_H = (Tensor(array) for array in random_case(2, 4, 3, "layer_norm", np.float32))

    with pytest.raises(ValueError, match=r"norm: expected .*gamma_H and beta_H \[H\]"):
        layer_norm(x_TH, gamma_H, beta_H[:2], EPSILON)
    with pytest.raises(ValueError, match=r"norm: expected x_TH and addend_TH \[T, H\]"):
        add_layer_norm(x_TH, x_TH[:2], gamma_H, beta_H, EPSILON)
    with pytest.raises(TypeError, match=r"norm: expected .*float32 gamma_H"):
        layer_norm(x_TH, gamma_H.astype(ms.float16), beta_H, EPSILON)
