"""grouped_ffn by the kernels in cpu.cc: PanGu-α's network in float32. Other networks and dtypes use the composed
form."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.grouped_ffn import composed
from ascend_ops.grouped_ffn.network import TENSORS, is_pangu_alpha

_forward = custom_op(
    "grouped_ffn",
    "grouped_ffn",
    lambda rows, counts, *slabs: (rows, (rows[0], slabs[0][2])),
    lambda rows, *_: (rows, rows),
)
_backward = custom_op(
    "grouped_ffn",
    "grouped_ffn_backward",
    lambda dout, u, rows, counts, *slabs: (rows, *slabs, u, u),
    lambda dout, u, rows, counts, *slabs: (rows, *slabs, u, u),
)


class _GroupedFFN(nn.Cell):
    """The operator as a Cell, because a custom op's bprop cannot take a variable number of inputs in graph mode."""

    def construct(self, rows_TH, counts_G, slabs):
        return _forward(rows_TH, counts_G, *slabs)

    def bprop(self, rows_TH, counts_G, slabs, out, dout):
        gradients = _backward(dout[0], out[1], rows_TH, counts_G, *slabs)
        return gradients[0], ops.ZerosLike()(counts_G), gradients[1 : 1 + len(slabs)]


_grouped_ffn = _GroupedFFN()


def grouped_ffn(
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    block_rows: int = 0,
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """See `ascend_ops.grouped_ffn`; ignores block_rows."""
    if rows_TH.dtype != ms.float32 or not is_pangu_alpha(tensors, activation):
        return composed.grouped_ffn(rows_TH, counts_G, slabs, block_rows, tensors, activation)
    return _grouped_ffn(rows_TH, counts_G, slabs)[0]


def feed_forward(
    rows_TH: Tensor, weights: Sequence[Tensor], tensors: Sequence[str] = TENSORS, activation: str = "fast_gelu"
) -> Tensor:
    """See `ascend_ops.grouped_ffn`."""
    if rows_TH.dtype != ms.float32 or not is_pangu_alpha(tensors, activation):
        return composed.feed_forward(rows_TH, weights, tensors, activation)
    slabs: tuple[Tensor, ...] = ()
    for weight in weights:
        slabs = (*slabs, ops.expand_dims(weight, 0))
    return _grouped_ffn(rows_TH, _count(rows_TH.shape[0]), slabs)[0]


@ops.constexpr
def _count(num_rows):
    return Tensor([num_rows], ms.int32)
