"""grouped_ffn by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.grouped_ffn import composed
from ascend_ops.grouped_ffn.network import ALL_TENSORS, TENSORS


class _GroupedFFN(nn.Cell):
    """The kernels of one network. A Cell, because a custom op's bprop cannot take a variable number of inputs."""

    def __init__(self, tensors, activation):
        super().__init__()
        indices = [tensors.index(name) if name in tensors else -1 for name in ALL_TENSORS]
        self.layout = Tensor([*indices, int(activation == "silu")], ms.int32)
        up = tensors.index("up")
        num_kept = 2 if "gate" in tensors else 1

        def out_shapes(layout, rows, counts, *slabs):
            return (rows, *[(rows[0], slabs[up][-1])] * num_kept)

        def out_dtypes(layout, rows, *_):
            return (rows,) * (1 + num_kept)

        def gradients(layout, dout, *inputs):
            rows, _, *slabs = inputs[num_kept:]
            return (rows, *slabs)

        variant = ", ".join(tensors)
        self.num_kept = num_kept
        self.forward_kernel = custom_op("grouped_ffn", "grouped_ffn", out_shapes, out_dtypes, variant=variant)
        self.backward_kernel = custom_op("grouped_ffn", "grouped_ffn_backward", gradients, gradients, variant=variant)

    def construct(self, rows_TH, counts_G, slabs):
        return self.forward_kernel(self.layout, rows_TH, counts_G, *slabs)

    def bprop(self, rows_TH, counts_G, slabs, out, dout):
        kept = out[1 : 1 + self.num_kept]
        gradients = self.backward_kernel(self.layout, dout[0], *kept, rows_TH, counts_G, *slabs)
        return gradients[0], ops.ZerosLike()(counts_G), gradients[1:]


_cells: dict[tuple, nn.Cell] = {}


@ops.constexpr
def _cell(tensors, activation):
    key = (*tensors, activation)
    if key not in _cells:
        _cells[key] = _GroupedFFN(tuple(tensors), activation)
    return _cells[key]


def grouped_ffn(
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    block_rows: int = 0,
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """See `ascend_ops.grouped_ffn`; ignores block_rows."""
    if rows_TH.dtype != ms.float32:
        return composed.grouped_ffn(rows_TH, counts_G, slabs, block_rows, tensors, activation)
    return _cell(tensors, activation)(rows_TH, counts_G, slabs)[0]


def feed_forward(
    rows_TH: Tensor, weights: Sequence[Tensor], tensors: Sequence[str] = TENSORS, activation: str = "fast_gelu"
) -> Tensor:
    """See `ascend_ops.grouped_ffn`."""
    if rows_TH.dtype != ms.float32:
        return composed.feed_forward(rows_TH, weights, tensors, activation)
    return _cell(tensors, activation)(rows_TH, _count(rows_TH.shape[0]), weights)[0]


@ops.constexpr
def _count(num_rows):
    return Tensor([num_rows], ms.int32)
