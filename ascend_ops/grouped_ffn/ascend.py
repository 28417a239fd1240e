"""grouped_ffn by MindSpore's GroupedMatmul, on chips that have it (not 910A). Unverified on hardware.

Rows stay where they are: no blocks, no overflow. The slots' slabs are joined, a copy when there are several; on a
cluster a sub-group activates one domain, so there is one.
"""

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.auto_generate import GroupedMatmul

from ascend_ops.grouped_ffn import composed
from ascend_ops.grouped_ffn.network import TENSORS, activate, place, series

WITHOUT_GROUPED_MATMUL = ("CPU", "ascend910")


class GroupedProduct(nn.Cell):
    """Rows of group g times matrix g. Of rows after the last group nothing is promised.

    Args:
        product, with_transposed: rows [T, I], matrices [G, I, O] (or [G, O, I]) and where groups end → [T, O].
        of_rows: rows [T, I], rows [T, O] and where groups end → [G, I, O].
    """

    def __init__(self, product, with_transposed, of_rows):
        super().__init__()
        self.product, self.with_transposed, self.of_rows = product, with_transposed, of_rows

    def construct(self, rows_TI, matrices_GIO, ends_G):
        return self.product(rows_TI, matrices_GIO, ends_G)

    def bprop(self, rows_TI, matrices_GIO, ends_G, out, dout):
        drows_TI = self.with_transposed(dout, matrices_GIO, ends_G)
        return drows_TI, self.of_rows(rows_TI, dout, ends_G), ops.ZerosLike()(ends_G)


class _Primitive(nn.Cell):
    """GroupedMatmul of one tensor by one tensor. It transposes nothing itself: `left_axes`, `right_axes` are given to
    ops.transpose before."""

    def __init__(self, group_type, left_axes=None, right_axes=None):
        super().__init__()
        self.primitive = GroupedMatmul(split_item=3, group_type=group_type)
        self.left_axes, self.right_axes = left_axes, right_axes

    def construct(self, left, right, ends_G):
        if self.left_axes is not None:
            left = ops.Transpose()(left, self.left_axes)
        if self.right_axes is not None:
            right = ops.Transpose()(right, self.right_axes)
        return self.primitive((left,), (right,), None, None, None, None, None, ends_G)[0]


def chip() -> str:
    """ "ascend910b", "ascend910" …, or "CPU"."""
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


def grouped_ffn(rows_TH, counts_G, slabs, block_rows=0, tensors=TENSORS, activation="fast_gelu"):
    """See `ascend_ops.grouped_ffn`."""
    return by_product(_product, rows_TH, counts_G, slabs, tensors, activation)


def by_product(product, rows_TH, counts_G, slabs, tensors=TENSORS, activation="fast_gelu"):
    """The network of every group by a `GroupedProduct`."""
    weights = composed.joined(slabs, len(tensors))
    ends_G = ops.cumsum(counts_G, 0)
    owner_TG = _owners(counts_G, ends_G, rows_TH.shape[0], rows_TH.dtype)
    real_T1 = ops.cast(owner_TG.sum(1, keepdims=True), ms.bool_)
    ends_G = ops.cast(ends_G, ms.int64)

    def times(rows, matrix, bias):
        # a product with the owners picks each row's bias; its gradient sums over a group's rows
        result = product(rows, weights[matrix], ends_G)
        return result if bias < 0 else result + ops.matmul(owner_TG, weights[bias])

    rows_TH = _only(real_T1, rows_TH)
    u = _only(real_T1, times(rows_TH, place(tensors, "up"), place(tensors, "up_bias")))
    inner = u
    if place(tensors, "gate") >= 0:
        inner = _only(real_T1, times(rows_TH, place(tensors, "gate"), place(tensors, "gate_bias")))
    if place(tensors, "scale") >= 0:
        scale, shift = weights[place(tensors, "scale")], weights[place(tensors, "shift")]
        scales, shifts = (), ()
        for i in range(scale.shape[1]):
            scales = (*scales, ops.matmul(owner_TG, scale[:, i]))
            shifts = (*shifts, ops.matmul(owner_TG, shift[:, i]))
        # nothing of what the last product gives padding backward: the owners' product would sum it up
        inner = _only(real_T1, series(activation, inner, scales, shifts))
    else:
        inner = activate(activation, inner)
    if place(tensors, "gate") >= 0:
        inner = inner * u
    return _only(real_T1, times(inner, place(tensors, "down"), place(tensors, "down_bias")))


def _only(real_T1, rows):
    """Zeros instead of padding, whatever stands there: forward, and in the gradient."""
    return ops.select(ops.broadcast_to(real_T1, rows.shape), rows, ops.zeros_like(rows))


def _owners(counts_G, ends_G, num_rows, dtype):
    """[T, G]: 1 where a row is of a group; rows of padding have none."""
    rows_T1 = ops.expand_dims(ops.cast(ops.arange(num_rows), ms.int32), 1)
    inside_TG = ops.logical_and(rows_T1 >= ends_G - counts_G, rows_T1 < ends_G)
    return ops.cast(inside_TG, dtype)
