"""NumPy reference of rre_regroup, forward and backward."""

import numpy as np


def rre_regroup(rows_CH: np.ndarray, counts_RG: np.ndarray) -> np.ndarray:
    """See `ascend_ops.rre_regroup`; takes any float dtype.

    Raises:
        ValueError: a count is negative, or the counts add up to more than the rows.
    """
    if counts_RG.min(initial=0) < 0 or counts_RG.sum() > len(rows_CH):
        raise ValueError(f"rre_regroup: counts {counts_RG.tolist()} do not fit {len(rows_CH)} rows")
    num_sources, num_groups = counts_RG.shape
    ends_RG = np.cumsum(counts_RG.reshape(-1)).reshape(counts_RG.shape)
    starts_RG = ends_RG - counts_RG
    blocks = [rows_CH[starts_RG[r, g] : ends_RG[r, g]] for g in range(num_groups) for r in range(num_sources)]
    out_CH = np.zeros_like(rows_CH)
    out_CH[: counts_RG.sum()] = np.concatenate([rows_CH[:0], *blocks])
    return out_CH


def rre_regroup_backward(dout_CH: np.ndarray, counts_RG: np.ndarray) -> np.ndarray:
    """Returns the gradient with respect to rows_CH: the blocks return to their first order."""
    return rre_regroup(dout_CH, np.ascontiguousarray(counts_RG.T))
