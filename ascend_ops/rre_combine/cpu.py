"""rre_combine by the kernels in cpu.cc."""

from mindspore import Tensor, ops

from ascend_ops.backends import custom_op

_backward = custom_op("rre_combine", "rre_combine_backward", lambda dout, positions: dout, lambda dout, _: dout)


def _bprop(rows_TH, positions_T, residual_TH, out, dout):
    return _backward(dout, positions_T), ops.ZerosLike()(positions_T), dout


_forward = custom_op(
    "rre_combine", "rre_combine", lambda rows, positions, residual: rows, lambda rows, *_: rows, _bprop
)


def rre_combine(rows_TH: Tensor, positions_T: Tensor, residual_TH: Tensor) -> Tensor:
    """See `ascend_ops.rre_combine`."""
    return _forward(rows_TH, positions_T, residual_TH)
