"""NumPy reference of rre_combine, forward and backward."""

import numpy as np


def rre_combine(rows_TH: np.ndarray, positions_T: np.ndarray, residual_TH: np.ndarray) -> np.ndarray:
    """See `ascend_ops.rre_combine`; takes any float dtype and adds in at least float32."""
    accumulator = np.promote_types(rows_TH.dtype, np.float32)
    out_TH = residual_TH.astype(accumulator) + rows_TH[positions_T].astype(accumulator)
    return out_TH.astype(rows_TH.dtype)


def rre_combine_backward(dout_TH: np.ndarray, positions_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients with respect to (rows_TH, residual_TH)."""
    drows_TH = np.empty_like(dout_TH)
    drows_TH[positions_T] = dout_TH
    return drows_TH, dout_TH
