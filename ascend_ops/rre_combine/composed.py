"""rre_combine by built-in MindSpore ops."""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops.rre_dispatch.composed import inverse_permutation, move_rows


def rre_combine(rows_TH: Tensor, positions_T: Tensor, residual_TH: Tensor) -> Tensor:
    """See `ascend_ops.rre_combine`."""
    positions_T = ops.clamp(positions_T, 0, rows_TH.shape[0] - 1)
    tokens_TH = move_rows(rows_TH, positions_T, inverse_permutation(positions_T))
    if rows_TH.dtype == ms.float64:
        return residual_TH + tokens_TH
    total_TH = ops.cast(residual_TH, ms.float32) + ops.cast(tokens_TH, ms.float32)
    return ops.cast(total_TH, rows_TH.dtype)
