"""NumPy reference of rre_regroup, forward and backward."""

import numpy as np


def rre_regroup(rows_CH: np.ndarray, counts_RG: np.ndarray) -> np.ndarray:
    """See `ascend_ops.rre_regroup`; any float dtype.

    Raises:
        ValueError: a negative count, or more rows than there are.
    """
    if counts_RG.min(initial=0) < 0 or counts_RG.sum() > len(rows_CH):
        raise ValueError(f"rre_regroup: counts {counts_RG.tolist()} do not fit {len(rows_CH)} rows")
    num_sources, num_groups = counts_RG.shape
    ends_RG = np.cumsum(counts_RG.reshape(-1)).reshape(counts_RG.shape)
    blocks = [
        rows_CH[ends_RG[a, b] - counts_RG[a, b] : ends_RG[a, b]] for b in range(num_groups) for a in range(num_sources)
    ]
    out_CH = np.zeros_like(rows_CH)
    out_CH[: counts_RG.sum()] = np.concatenate([rows_CH[:0], *blocks])
    return out_CH


def rre_regroup_backward(dout_CH: np.ndarray, counts_RG: np.ndarray) -> np.ndarray:
    """Gradient with respect to rows_CH: the blocks go back to where they came from."""
    return rre_regroup(dout_CH, np.ascontiguousarray(counts_RG.T))
