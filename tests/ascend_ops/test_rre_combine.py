"""rre_combine: rows go back to token order, and the residual is added in at least float32."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.rre_combine import reference, rre_combine

CASES = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 33),
    st.sampled_from([np.float16, np.float32, np.float64]),
)


@given(case=CASES)
@settings(max_examples=10, deadline=None)
def test_every_backend_equals_the_reference_bit_for_bit(backend, differentiate, case):
    seed, tokens, hidden, dtype = case
    rng = np.random.default_rng(seed)
    rows_TH, residual_TH, dout_TH = (rng.standard_normal((tokens, hidden)).astype(dtype) for _ in range(3))
    positions_T = rng.permutation(tokens).astype(np.int32)
    combine = backend("rre_combine").rre_combine

    def function(*inputs):
        return (combine(*inputs),)

    (out_TH,), gradients = differentiate(function, (rows_TH, positions_T, residual_TH), [0, 2], dout_TH)

    np.testing.assert_array_equal(out_TH, reference.rre_combine(rows_TH, positions_T, residual_TH))
    for gradient, expected in zip(gradients, reference.rre_combine_backward(dout_TH, positions_T), strict=True):
        np.testing.assert_array_equal(gradient, expected)
        assert gradient.dtype == dtype


def test_the_kernel_refuses_positions_outside_the_rows(backend):
    if backend.name != "cpu":
        pytest.skip("positions come from rre_dispatch; only the kernel checks them again")
    combine = backend("rre_combine").rre_combine  # the kernel itself, without the check of eager calls
    rows_TH = Tensor(np.zeros((3, 2), np.float32))

    with pytest.raises(RuntimeError, match="position 3 of token 1 is outside 3 rows"):
        combine(rows_TH, Tensor(np.array([0, 3, 1], np.int32)), rows_TH).asnumpy()


@pytest.mark.parametrize("positions", [[0, 1 << 30, 1], [0, -1, 1], [0, 0, 1]])
def test_an_eager_call_refuses_positions_that_are_no_permutation(positions):
    rows_TH = Tensor(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="is not a permutation of 3 rows"):
        rre_combine(rows_TH, Tensor(np.array(positions, np.int32)), rows_TH)


def test_a_compiled_composed_form_stays_inside_the_rows():
    from ascend_ops.rre_combine import composed

    @ms.jit
    def combine(rows_TH, positions_T):
        return composed.rre_combine(rows_TH, positions_T, rows_TH)

    rows_TH = Tensor(np.ones((3, 2), np.float32))

    for bad in (1 << 30, -5):
        out_TH = combine(rows_TH, Tensor(np.array([0, bad, 1], np.int32)))
        np.testing.assert_array_equal(out_TH.asnumpy(), 2)


def test_wrong_arguments_are_refused():
    rows_TH = Tensor(np.zeros((4, 2), np.float32))
    positions_T = Tensor(np.arange(4, dtype=np.int32))

    with pytest.raises(ValueError, match="rre_combine: expected"):
        rre_combine(rows_TH, positions_T[:3], rows_TH)
    with pytest.raises(TypeError, match=r"rre_combine: expected .*Float16"):
        rre_combine(rows_TH, positions_T, rows_TH.astype(ms.float16))
    with pytest.raises(TypeError, match=r"rre_combine: expected .*Int64"):
        rre_combine(rows_TH, positions_T.astype(ms.int64), rows_TH)
