"""rre_combine of built-in MindSpore ops."""

import mindspore as ms
from mindspore import ops

from ascend_ops.rre_dispatch.composed import inverse_permutation, move_rows


def rre_combine(rows_TH, positions_T, residual_TH):
    """Takes rows sorted by expert back to token order and adds the residual, in at least fp32.

    Args:
        rows_TH: float [T, H], in the order of `rre_dispatch`.
        positions_T: int32 [T] of `rre_dispatch`: token t's row is rows_TH[positions_T[t]].
        residual_TH: float [T, H], in token order.

    Returns:
        float [T, H] of rows_TH's dtype: residual_TH + rows_TH[positions_T].

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to rows_TH and residual_TH.
    """
    if rows_TH.shape != residual_TH.shape or positions_T.shape != (rows_TH.shape[0],):
        raise ValueError("rre_combine: expected rows_TH and residual_TH both [T, H], and positions_T [T]")
    tokens_TH = move_rows(rows_TH, positions_T, inverse_permutation(positions_T))
    if rows_TH.dtype == ms.float64:
        return residual_TH + tokens_TH
    total_TH = ops.cast(residual_TH, ms.float32) + ops.cast(tokens_TH, ms.float32)
    return ops.cast(total_TH, rows_TH.dtype)
