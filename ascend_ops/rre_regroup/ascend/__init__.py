"""rre_regroup by the AscendC kernels in op_kernel/; rows that are not whole granules use the composed form."""

from mindspore import Tensor, ops

from ascend_ops.ascend.operators import INTS, custom_op, padded, takes_rows
from ascend_ops.rre_regroup import composed

_back = custom_op("rre_regroup_back", lambda dout, counts: dout, lambda dout, _: dout)


def _bprop(rows_CH, counts_RG, out, dout):
    return _back(dout, counts_RG), ops.ZerosLike()(counts_RG)


_forward = custom_op("rre_regroup", lambda rows, counts: rows, lambda rows, _: rows, _bprop)


def rre_regroup(rows_CH: Tensor, counts_RG: Tensor) -> Tensor:
    """See `ascend_ops.rre_regroup`."""
    if not takes_rows(rows_CH.shape, rows_CH.dtype):
        return composed.rre_regroup(rows_CH, counts_RG)
    return _forward(rows_CH, padded(counts_RG, INTS))  # blocks without rows change nothing
