"""NumPy reference of grouped_ffn, forward and backward: a loop over the groups, nothing clever."""

from collections.abc import Sequence

import numpy as np

SLOPE = float(np.float32(1.702))  # frameworks keep the constant in float32, whatever the tensor's dtype is


def fast_gelu(u: np.ndarray) -> np.ndarray:
    """u · sigmoid(1.702 u), PanGu-α's activation."""
    return u / (1 + np.exp(-SLOPE * u))


def fast_gelu_derivative(u: np.ndarray) -> np.ndarray:
    sigmoid = 1 / (1 + np.exp(-SLOPE * u))
    return sigmoid + SLOPE * u * sigmoid * (1 - sigmoid)


def _groups(counts_G: np.ndarray, slabs: Sequence[np.ndarray]):
    """Yields (rows of the group, index of its slab's first tensor, expert inside the slab)."""
    num_experts, start = len(slabs[0]), 0
    for group, count in enumerate(counts_G):
        slot, expert = divmod(group, num_experts)
        yield slice(start, start + count), 4 * slot, expert
        start += count


def grouped_ffn(rows_TH: np.ndarray, counts_G: np.ndarray, slabs: Sequence[np.ndarray]) -> np.ndarray:
    """See `ascend_ops.grouped_ffn`; any float dtype."""
    out_TH = np.zeros_like(rows_TH)
    for rows, slab, expert in _groups(counts_G, slabs):
        up, up_bias, down, down_bias = (slabs[slab + i][expert] for i in range(4))
        out_TH[rows] = fast_gelu(rows_TH[rows] @ up + up_bias) @ down + down_bias
    return out_TH


def grouped_ffn_backward(
    dout_TH: np.ndarray, rows_TH: np.ndarray, counts_G: np.ndarray, slabs: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Gradients with respect to rows_TH and to each of the slabs' tensors."""
    drows_TH = np.zeros_like(rows_TH)
    dslabs = [np.zeros_like(tensor) for tensor in slabs]
    for rows, slab, expert in _groups(counts_G, slabs):
        up, up_bias, down, _ = (slabs[slab + i][expert] for i in range(4))
        x, dout = rows_TH[rows], dout_TH[rows]
        u = x @ up + up_bias
        du = (dout @ down.T) * fast_gelu_derivative(u)
        drows_TH[rows] = du @ up.T
        gradients = (x.T @ du, du.sum(0), fast_gelu(u).T @ dout, dout.sum(0))
        for i, gradient in enumerate(gradients):
            dslabs[slab + i][expert] = gradient
    return drows_TH, dslabs
