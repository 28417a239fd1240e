"""rre_combine by the AscendC kernels in op_kernel/; rows that are not whole granules use the composed form."""

from mindspore import Tensor, ops

from ascend_ops.ascend.operators import INTS, custom_op, padded, takes_rows
from ascend_ops.rre_combine import composed

_scatter_rows = custom_op("rre_scatter_rows", lambda rows, positions: rows, lambda rows, _: rows)


def _bprop(rows_TH, positions_T, residual_TH, out, dout):
    return _scatter_rows(dout, positions_T), ops.ZerosLike()(positions_T), dout


_forward = custom_op("rre_combine", lambda rows, positions, residual: rows, lambda rows, *_: rows, _bprop)


def rre_combine(rows_TH: Tensor, positions_T: Tensor, residual_TH: Tensor) -> Tensor:
    """See `ascend_ops.rre_combine`."""
    if not takes_rows(rows_TH.shape, rows_TH.dtype):
        return composed.rre_combine(rows_TH, positions_T, residual_TH)
    return _forward(rows_TH, padded(positions_T, INTS), residual_TH)
