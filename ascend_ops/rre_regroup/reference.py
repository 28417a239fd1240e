"""NumPy reference of rre_regroup, forward and backward."""

import numpy as np


def rre_regroup(rows_CH: np.ndarray, counts_AB: np.ndarray) -> np.ndarray:
    """See `ascend_ops.rre_regroup`; any float dtype.

    Raises:
        ValueError: a negative count, or more rows than there are.
    """
    if counts_AB.min(initial=0) < 0 or counts_AB.sum() > len(rows_CH):
        raise ValueError(f"rre_regroup: counts {counts_AB.tolist()} do not fit {len(rows_CH)} rows")
    num_sources, num_groups = counts_AB.shape
    ends_AB = np.cumsum(counts_AB.reshape(-1)).reshape(counts_AB.shape)
    blocks = [
        rows_CH[ends_AB[a, b] - counts_AB[a, b] : ends_AB[a, b]] for b in range(num_groups) for a in range(num_sources)
    ]
    out_CH = np.zeros_like(rows_CH)
    out_CH[: counts_AB.sum()] = np.concatenate([rows_CH[:0], *blocks])
    return out_CH


def rre_regroup_backward(dout_CH: np.ndarray, counts_AB: np.ndarray) -> np.ndarray:
    """Gradient with respect to rows_CH: the blocks go back to where they came from."""
    return rre_regroup(dout_CH, np.ascontiguousarray(counts_AB.T))
