"""The Ascend form of grouped_ffn, with a stand-in for MindSpore's GroupedMatmul, which the CPU lacks."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from ascend_ops.grouped_ffn import reference
from ascend_ops.grouped_ffn.ascend import GroupedProduct, by_product


def slices(ends_G):
    ends = ends_G.asnumpy().tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def product(rows, matrices, ends_G):
    """Multiplies like GroupedMatmul: rows after the last group are garbage."""
    parts = [ops.matmul(rows[a:b], matrices[g]) for g, (a, b) in enumerate(slices(ends_G)) if b > a]
    rest = rows.shape[0] - int(ends_G.asnumpy()[-1])
    return ops.concat([*parts, ops.ones((rest, matrices.shape[2]), rows.dtype) * float("nan")] if rest else parts, 0)


def product_with_transposed(rows, matrices, ends_G):
    return product(rows, ops.transpose(matrices, (0, 2, 1)), ends_G)


def product_of_rows(rows, other, ends_G):
    nothing = ops.zeros((rows.shape[1], other.shape[1]), rows.dtype)
    return ops.stack([ops.matmul(rows[a:b].T, other[a:b]) if b > a else nothing for a, b in slices(ends_G)])


NETWORKS = [(reference.TENSORS, "fast_gelu"), (("gate", "up", "up_bias", "scale", "shift", "down"), "silu")]


@pytest.mark.parametrize("counts", [[3, 0, 4, 2], [0, 0, 9, 0], [1, 2, 3, 1]])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("network", NETWORKS, ids=["pangu_alpha", "pangu_pi"])
def test_the_ascend_form_equals_the_reference_forward_and_backward(counts, slots, network):
    rng = np.random.default_rng(0)
    hidden = 6
    inner = 8
    experts = 4 // slots
    shape_of = {
        "gate": (hidden, inner),
        "up": (hidden, inner),
        "up_bias": (inner,),
        "scale": (2, inner),
        "shift": (2, inner),
        "down": (inner, hidden),
        "down_bias": (hidden,),
    }
    shapes = [(experts, *shape_of[name]) for name in network[0]]
    slabs = [0.5 * rng.standard_normal(shape).astype(np.float64) for _ in range(slots) for shape in shapes]
    rows_TH, dout_TH = (rng.standard_normal((9, hidden)).astype(np.float64) for _ in range(2))
    counts_G = np.array(counts, np.int32)
    cell = GroupedProduct(product, product_with_transposed, product_of_rows)

    def weighted(rows, *weights):
        out_TH = by_product(cell, rows, Tensor(counts_G), weights, *network)
        return (out_TH * Tensor(dout_TH)).sum(), out_TH

    inputs = [Tensor(each) for each in (rows_TH, *slabs)]

    (_, out_TH), gradients = ms.value_and_grad(weighted, tuple(range(len(inputs))), has_aux=True)(*inputs)

    np.testing.assert_allclose(out_TH.asnumpy(), reference.grouped_ffn(rows_TH, counts_G, slabs, *network), atol=1e-9)
    drows_TH, dslabs = reference.grouped_ffn_backward(dout_TH, rows_TH, counts_G, slabs, *network)
    for gradient, expected in zip(gradients, [drows_TH, *dslabs], strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), expected, atol=1e-9)
