"""Dispatch → grouped FFN → combine as in the model: the chosen backends against the references."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.grouped_ffn import grouped_ffn
from ascend_ops.grouped_ffn import reference as ffn_reference
from ascend_ops.rre_combine import reference as combine_reference
from ascend_ops.rre_combine import rre_combine
from ascend_ops.rre_dispatch import reference as dispatch_reference
from ascend_ops.rre_dispatch import rre_dispatch

ms.set_context(mode=ms.PYNATIVE_MODE)


def random_case(seed, tokens, slots, experts, hidden, inner, skew, dtype):
    """Returns x, ids, table, slabs and an output gradient. `skew` sends every token to one expert."""
    rng = np.random.default_rng(seed)
    vocab = 11
    table_DV = rng.integers(0, experts, (slots, vocab)).astype(np.int32)
    if skew:
        table_DV[:] = experts - 1
    shapes = ((experts, hidden, inner), (experts, inner), (experts, inner, hidden), (experts, hidden))
    return {
        "x_TH": rng.standard_normal((tokens * slots, hidden)).astype(dtype),
        "token_ids_T": rng.integers(0, vocab, tokens * slots).astype(np.int32),
        "slot_ids_T": rng.integers(0, slots, tokens * slots).astype(np.int32),  # slots of any size
        "table_DV": table_DV,
        "dout_TH": rng.standard_normal((tokens * slots, hidden)).astype(dtype),
        "slabs": [(0.5 * rng.standard_normal(shape)).astype(dtype) for _ in range(slots) for shape in shapes],
    }


def layer_of_operators(case, experts, block_rows, graph):
    """Returns (output, counts, positions, gradients of x and slabs) of dispatch → FFN → combine."""

    def weighted(x_TH, token_ids_T, slot_ids_T, table_DV, dout_TH, *slabs):
        rows_TH, counts_G, positions_T, _ = rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, experts)
        out_TH = rre_combine(grouped_ffn(rows_TH, counts_G, slabs, block_rows), positions_T, x_TH)
        return (out_TH * dout_TH).sum(), out_TH, counts_G, positions_T

    inputs = [case[name] for name in ("x_TH", "token_ids_T", "slot_ids_T", "table_DV", "dout_TH")] + case["slabs"]
    wanted = (0, *range(5, 5 + len(case["slabs"])))
    gradient = ms.value_and_grad(weighted, wanted, has_aux=True)

    def run(*tensors):
        return gradient(*tensors)

    function = ms.jit(run) if graph else run
    (_, out_TH, counts_G, positions_T), gradients = function(*(Tensor(array) for array in inputs))
    return out_TH.asnumpy(), counts_G.asnumpy(), positions_T.asnumpy(), [g.asnumpy() for g in gradients]


def layer_of_references(case, experts):
    """Returns the same by the references, in float64."""
    x_TH = case["x_TH"].astype(np.float64)
    dout_TH = case["dout_TH"].astype(np.float64)
    slabs = [slab.astype(np.float64) for slab in case["slabs"]]
    rows_TH, counts_G, positions_T = dispatch_reference.rre_dispatch(
        x_TH, case["token_ids_T"], case["slot_ids_T"], case["table_DV"], experts
    )
    out_TH = combine_reference.rre_combine(ffn_reference.grouped_ffn(rows_TH, counts_G, slabs), positions_T, x_TH)
    dsorted_TH, dresidual_TH = combine_reference.rre_combine_backward(dout_TH, positions_T)
    drows_TH, dslabs = ffn_reference.grouped_ffn_backward(dsorted_TH, rows_TH, counts_G, slabs)
    dx_TH = dresidual_TH + dispatch_reference.rre_dispatch_backward(drows_TH, positions_T)
    return out_TH, counts_G, positions_T, [dx_TH, *dslabs]


def largest_error(results, expected):
    """Returns the largest error relative to the largest expected value."""
    return np.abs(results - expected).max() / max(np.abs(expected).max(), 1e-30)


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "tokens": st.integers(1, 23),
        "slots": st.integers(1, 3),
        "experts": st.integers(1, 5),
        "hidden": st.integers(1, 6),
        "inner": st.integers(1, 7),
        "skew": st.booleans(),
    }
)


@given(shape=CASES, block_rows=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_layer_matches_the_reference_in_pynative_mode_on_random_shapes(shape, block_rows):
    case = random_case(**shape, dtype=np.float64)
    results = layer_of_operators(case, shape["experts"], block_rows, False)

    expected = layer_of_references(case, shape["experts"])
    np.testing.assert_array_equal(results[1], expected[1])
    np.testing.assert_array_equal(results[2], expected[2])
    assert largest_error(results[0], expected[0]) < 1e-12
    for gradient, wanted in zip(results[3], expected[3], strict=True):
        assert largest_error(gradient, wanted) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("tokens", "slots", "experts", "skew", "block_rows"),
    [(13, 1, 4, False, 0), (13, 1, 4, True, 3), (8, 2, 3, False, 0), (5, 1, 1, False, 0), (1, 2, 5, False, 2)],
)
def test_the_layer_matches_the_reference_in_graph_mode(dtype, tokens, slots, experts, skew, block_rows):
    case = random_case(0, tokens, slots, experts, 6, 10, skew, dtype)
    results = layer_of_operators(case, experts, block_rows, True)
    expected = layer_of_references(case, experts)

    bound = 1e-12 if dtype == np.float64 else 3e-6
    np.testing.assert_array_equal(results[1], expected[1])
    np.testing.assert_array_equal(results[2], expected[2])
    assert largest_error(results[0], expected[0]) < bound
    for gradient, wanted in zip(results[3], expected[3], strict=True):
        assert largest_error(gradient, wanted) < bound


def test_reference_gradients_match_finite_differences():
    case = random_case(1, 7, 2, 3, 4, 5, False, np.float64)

    def value():
        return (layer_of_references(case, 3)[0] * case["dout_TH"]).sum()

    gradients = layer_of_references(case, 3)[3]
    step = 1e-6
    for array, gradient in zip([case["x_TH"], *case["slabs"]], gradients, strict=True):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = value()
            array[index] = kept - step
            below = value()
            array[index] = kept
            assert abs((above - below) / (2 * step) - gradient[index]) < 1e-7 * max(1, abs(gradient[index]))
