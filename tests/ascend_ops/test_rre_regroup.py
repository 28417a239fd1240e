"""rre_regroup: reorders blocks, in both directions, and changes nothing else."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.rre_regroup import reference, rre_regroup

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sources": st.integers(1, 5),
        "groups": st.integers(1, 6),
        "largest": st.sampled_from([0, 1, 9, 90]),
        "padding": st.integers(0, 5),
        "hidden": st.integers(1, 20),
        "dtype": st.sampled_from([np.float16, np.float32, np.float64]),
    }
)


def random_case(seed, sources, groups, largest, padding, hidden, dtype):
    rng = np.random.default_rng(seed)
    counts_RG = rng.integers(0, largest + 1, (sources, groups)).astype(np.int32)
    num_rows = max(1, int(counts_RG.sum()) + padding)
    rows_CH, dout_CH = (rng.standard_normal((num_rows, hidden)).astype(dtype) for _ in range(2))
    return rows_CH, counts_RG, dout_CH


@given(shape=CASES)
@settings(max_examples=10, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, shape):
    rows_CH, counts_RG, dout_CH = random_case(**shape)
    regroup = backend("rre_regroup").rre_regroup

    def function(*inputs):
        return (regroup(*inputs),)

    (out_CH,), (drows_CH,) = differentiate(function, (rows_CH, counts_RG), [0], dout_CH)

    np.testing.assert_array_equal(out_CH, reference.rre_regroup(rows_CH, counts_RG))
    np.testing.assert_array_equal(drows_CH, reference.rre_regroup_backward(dout_CH, counts_RG))


@given(shape=CASES)
@settings(max_examples=50, deadline=None)
def test_reference_sorts_by_group_and_restores_the_order(shape):
    rows_CH, counts_RG, _ = random_case(**shape)
    group_of_row = np.concatenate([np.repeat(np.arange(counts_RG.shape[1]), counts) for counts in counts_RG])
    used = len(group_of_row)

    regrouped = reference.rre_regroup(rows_CH, counts_RG)

    np.testing.assert_array_equal(regrouped[:used], rows_CH[:used][np.argsort(group_of_row, kind="stable")])
    np.testing.assert_array_equal(reference.rre_regroup_backward(regrouped, counts_RG)[:used], rows_CH[:used])


@pytest.mark.parametrize(
    ("counts", "message"), [([[2, -1]], r"block \(0, 1\) is -1"), ([[3, 2]], "add up to 5 rows of 4")]
)
def test_the_kernel_refuses_counts_that_do_not_fit(backend, counts, message):
    if backend.name != "cpu":
        pytest.skip("the composed form cannot check counts; it stays inside the rows")
    with pytest.raises(RuntimeError, match=message):
        rows_CH = Tensor(np.zeros((4, 2), np.float32))
        backend("rre_regroup").rre_regroup(rows_CH, Tensor(np.array(counts, np.int32))).asnumpy()


def test_wrong_arguments_are_refused():
    rows_CH = Tensor(np.zeros((4, 2), np.float32))
    counts_RG = Tensor(np.ones((1, 2), np.int32))

    with pytest.raises(ValueError, match="rre_regroup: expected"):
        rre_regroup(rows_CH, counts_RG[0])
    with pytest.raises(TypeError, match="rre_regroup: expected"):
        rre_regroup(rows_CH, counts_RG.astype(ms.int64))
