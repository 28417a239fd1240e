"""grouped_ffn by MindSpore's GroupedMatmul, on chips that have it (not 910A). Unverified on hardware.

Rows are not moved: there are no blocks and no overflow. The slabs of several slots are joined, which copies them; on a
cluster a sub-group activates one domain, so there is one slab.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import GroupedMatmul

from ascend_ops.grouped_ffn import composed
from ascend_ops.grouped_ffn.network import TENSORS, activate, index_of, series

WITHOUT_GROUPED_MATMUL = ("CPU", "ascend910")


class GroupedProduct(nn.Cell):
    """Multiplies the rows of group g by matrix g. Rows after the last group are undefined.

    Args:
        product: takes rows [T, I], matrices [G, I, O] and the ends of the groups; returns [T, O].
        product_with_transposed: the same with matrices [G, O, I].
        product_of_rows: takes rows [T, I], rows [T, O] and the ends of the groups; returns [G, I, O].
    """

    def __init__(self, product: nn.Cell, product_with_transposed: nn.Cell, product_of_rows: nn.Cell):
        super().__init__()
        self.product = product
        self.product_with_transposed = product_with_transposed
        self.product_of_rows = product_of_rows

    def construct(self, rows, matrices, ends_G):
        return self.product(rows, matrices, ends_G)

    def bprop(self, rows, matrices, ends_G, out, dout):
        drows = self.product_with_transposed(dout, matrices, ends_G)
        return drows, self.product_of_rows(rows, dout, ends_G), ops.ZerosLike()(ends_G)


class _Primitive(nn.Cell):
    """GroupedMatmul of two tensors, after transposing them by `left_axes` and `right_axes` if given."""

    def __init__(self, group_type, left_axes=None, right_axes=None):
        super().__init__()
        self.primitive = GroupedMatmul(split_item=3, group_type=group_type)
        self.left_axes = left_axes
        self.right_axes = right_axes

    def construct(self, left, right, ends_G):
        if self.left_axes is not None:
            left = ops.Transpose()(left, self.left_axes)
        if self.right_axes is not None:
            right = ops.Transpose()(right, self.right_axes)
        return self.primitive((left,), (right,), None, None, None, None, None, ends_G)[0]


def chip() -> str:
    """Returns the name of the chip, "ascend910b", "ascend910" …, or "CPU"."""
    if ms.get_context("device_target") != "Ascend":
        return "CPU"
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version()


ON_THIS_CHIP = chip() not in WITHOUT_GROUPED_MATMUL

if ON_THIS_CHIP:
    _product = GroupedProduct(
        _Primitive(group_type=0),
        _Primitive(group_type=0, right_axes=(0, 2, 1)),
        _Primitive(group_type=2, left_axes=(1, 0)),
    )


def grouped_ffn(
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    block_rows: int = 0,
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """See `ascend_ops.grouped_ffn`."""
    return by_product(_product, rows_TH, counts_G, slabs, tensors, activation)


feed_forward = composed.feed_forward


def by_product(
    product: nn.Cell,
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """Computes the network of every group with a `GroupedProduct`."""
    weights = composed.join_slabs(slabs, len(tensors))
    ends_G = ops.cumsum(counts_G, 0)
    owner_TG = _owners(counts_G, ends_G, rows_TH.shape[0], rows_TH.dtype)
    real_T1 = ops.cast(owner_TG.sum(1, keepdims=True), ms.bool_)
    ends_G = ops.cast(ends_G, ms.int64)

    def times(rows, matrix, bias):
        # a product with the owners selects each row's bias; its gradient sums over a group's rows
        result = product(rows, weights[matrix], ends_G)
        return result if bias < 0 else result + ops.matmul(owner_TG, weights[bias])

    rows_TH = _only(real_T1, rows_TH)
    u = _only(real_T1, times(rows_TH, index_of(tensors, "up"), index_of(tensors, "up_bias")))
    inner = u
    if index_of(tensors, "gate") >= 0:
        inner = _only(real_T1, times(rows_TH, index_of(tensors, "gate"), index_of(tensors, "gate_bias")))
    if index_of(tensors, "scale") >= 0:
        scale = weights[index_of(tensors, "scale")]
        shift = weights[index_of(tensors, "shift")]
        scales: tuple[Tensor, ...] = ()
        shifts: tuple[Tensor, ...] = ()
        for i in range(scale.shape[1]):
            scales = (*scales, ops.matmul(owner_TG, scale[:, i]))
            shifts = (*shifts, ops.matmul(owner_TG, shift[:, i]))
        # drop the gradient of padding from the last product, because the product with the owners would sum it
        inner = _only(real_T1, series(activation, inner, scales, shifts))
    else:
        inner = activate(activation, inner)
    if index_of(tensors, "gate") >= 0:
        inner = inner * u
    return _only(real_T1, times(inner, index_of(tensors, "down"), index_of(tensors, "down_bias")))


def _only(real_T1, rows):
    """Replaces padding by zeros, whatever it contains, also in the gradient."""
    return ops.select(ops.broadcast_to(real_T1, rows.shape), rows, ops.zeros_like(rows))


def _owners(counts_G, ends_G, num_rows, dtype):
    """Returns [T, G]: 1 if a row belongs to a group; padding belongs to none."""
    rows_T1 = ops.expand_dims(ops.cast(ops.arange(num_rows), ms.int32), 1)
    inside_TG = ops.logical_and(rows_T1 >= ends_G - counts_G, rows_T1 < ends_G)
    return ops.cast(inside_TG, dtype)
