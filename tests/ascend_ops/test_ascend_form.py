"""The Python side of the AscendC operators: padding, shapes and gradients, with the kernels in the emulator."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_ops.rre_combine import ascend as combine
from ascend_ops.rre_combine import reference as combine_reference
from ascend_ops.rre_dispatch import ascend as dispatch
from ascend_ops.rre_dispatch import reference as dispatch_reference
from ascend_ops.rre_regroup import ascend as regroup
from ascend_ops.rre_regroup import reference as regroup_reference

SHAPES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "tokens": st.integers(1, 70),
        "hidden": st.sampled_from([16, 48, 5]),  # rows of 5 use the composed form
        "slots": st.integers(1, 3),
        "local_experts": st.integers(1, 5),
        "ranks": st.sampled_from([1, 2, 4]),
        "dtype": st.sampled_from([np.float16, np.float32]),
    }
)
few = settings(max_examples=6, deadline=None)


def rows(rng, shape):
    return [rng.standard_normal((shape["tokens"], shape["hidden"])).astype(shape["dtype"]) for _ in range(2)]


@given(shape=SHAPES)
@few
def test_dispatch_equals_the_reference(differentiate, shape):
    rng = np.random.default_rng(shape["seed"])
    x_TH, drows_TH = rows(rng, shape)
    num_experts = shape["ranks"] * shape["local_experts"]
    vocab = 19
    token_ids_T = rng.integers(0, vocab, shape["tokens"]).astype(np.int32)
    slot_ids_T = rng.integers(0, shape["slots"], shape["tokens"]).astype(np.int32)
    table_DV = rng.integers(0, num_experts, (shape["slots"], vocab)).astype(np.int32)
    inputs = (x_TH, token_ids_T, slot_ids_T, table_DV)

    def function(*inputs):
        return dispatch.rre_dispatch(*inputs, num_experts)

    outputs, (dx_TH,) = differentiate(function, inputs, [0], drows_TH)

    reference = dispatch_reference.rre_dispatch(*inputs, num_experts)
    for actual, expected in zip(outputs, (*reference, np.zeros(1, np.int32)), strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(dx_TH, dispatch_reference.rre_dispatch_backward(drows_TH, reference[2]))


def test_table_entries_that_are_no_expert_are_counted_even_if_16_bits_would_make_them_one(differentiate):
    x_TH = np.ones((9, 16), np.float32)
    ids_T = np.arange(9, dtype=np.int32)
    table_DV = np.array([[0, 1, 2, 3, 4, -1, 65536, 65537, 2**31 - 1]], np.int32)

    def function(*inputs):
        return dispatch.rre_dispatch(*inputs, 4)

    (*_, invalid), _ = differentiate(function, (x_TH, ids_T, 0 * ids_T, table_DV), [0], x_TH)

    assert invalid == [5]


@given(shape=SHAPES.filter(lambda shape: shape["hidden"] % 16 == 0))
@few
def test_dispatch_to_ranks_sorts_rows_in_the_order_of_sending(shape):
    rng = np.random.default_rng(shape["seed"])
    x_TH, _ = rows(rng, shape)
    num_experts = shape["ranks"] * shape["local_experts"]
    vocab = 19
    ids = (
        rng.integers(0, vocab, shape["tokens"]).astype(np.int32),
        rng.integers(0, shape["slots"], shape["tokens"]).astype(np.int32),
        rng.integers(0, num_experts, (shape["slots"], vocab)).astype(np.int32),
    )
    tensors = map(ms.Tensor, (x_TH, *ids))
    rows_TH, counts_G, positions_T, _ = dispatch.dispatch_to_ranks(*tensors, num_experts, shape["ranks"])

    counts_RG, expected_T = dispatch_reference.send_order(*ids, num_experts, shape["ranks"])

    np.testing.assert_array_equal(counts_G.asnumpy(), counts_RG.reshape(-1))
    np.testing.assert_array_equal(positions_T.asnumpy(), expected_T)
    np.testing.assert_array_equal(rows_TH.asnumpy()[expected_T], x_TH)


@given(shape=SHAPES)
@few
def test_combine_equals_the_reference(differentiate, shape):
    rng = np.random.default_rng(shape["seed"])
    rows_TH, residual_TH = rows(rng, shape)
    dout_TH, _ = rows(rng, shape)
    positions_T = rng.permutation(shape["tokens"]).astype(np.int32)

    def function(*inputs):
        return (combine.rre_combine(*inputs),)

    (out_TH,), gradients = differentiate(function, (rows_TH, positions_T, residual_TH), [0, 2], dout_TH)

    np.testing.assert_array_equal(out_TH, combine_reference.rre_combine(rows_TH, positions_T, residual_TH))
    for actual, expected in zip(gradients, combine_reference.rre_combine_backward(dout_TH, positions_T), strict=True):
        np.testing.assert_array_equal(actual, expected)


@given(shape=SHAPES)
@few
def test_regroup_equals_the_reference(differentiate, shape):
    rng = np.random.default_rng(shape["seed"])
    rows_CH, dout_CH = rows(rng, shape)
    blocks = (shape["ranks"], shape["slots"] * shape["local_experts"])
    counts_RG = rng.multinomial(rng.integers(0, shape["tokens"] + 1), np.full(blocks, 1 / np.prod(blocks)).ravel())
    counts_RG = counts_RG.reshape(blocks).astype(np.int32)

    def function(*inputs):
        return (regroup.rre_regroup(*inputs),)

    (out_CH,), (drows_CH,) = differentiate(function, (rows_CH, counts_RG), [0], dout_CH)

    np.testing.assert_array_equal(out_CH, regroup_reference.rre_regroup(rows_CH, counts_RG))
    np.testing.assert_array_equal(drows_CH, regroup_reference.rre_regroup_backward(dout_CH, counts_RG))


def test_ids_outside_the_table_are_counted():
    x_TH = ms.Tensor(np.ones((9, 16), np.float16))
    token_ids_T = ms.Tensor(np.array([0, 18, 19, 31, -1, 5, 5, 5, 5], np.int32))
    slot_ids_T = ms.Tensor(np.array([0, 0, 0, 0, 0, 1, -1, 0, 0], np.int32))
    table_DV = ms.Tensor(np.zeros((1, 19), np.int32))

    *_, positions_T, invalid = dispatch.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, 4)

    assert invalid.asnumpy() == [5]
    assert sorted(positions_T.asnumpy()) == list(range(9))


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        ((4, 16), ms.float16, True),
        ((4, 15), ms.float16, False),
        ((4, 8), ms.float32, True),
        ((4, 16), ms.float64, False),
    ],
)
def test_the_kernels_take_rows_of_some_shapes_and_dtypes(shape, dtype, takes):
    from ascend_ops.ascend import operators

    assert operators.takes(shape, dtype) is takes
