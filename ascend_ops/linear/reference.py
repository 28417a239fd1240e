"""NumPy reference of linear, forward and backward."""

import numpy as np


def linear(x_TI: np.ndarray, weight_IO: np.ndarray, bias_O: np.ndarray | None = None) -> np.ndarray:
    """See `ascend_ops.linear`; takes any float dtype."""
    product_TO = x_TI @ weight_IO
    return product_TO if bias_O is None else product_TO + bias_O


def linear_backward(
    dout_TO: np.ndarray, x_TI: np.ndarray, weight_IO: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the gradients with respect to (x_TI, weight_IO, bias_O)."""
    return dout_TO @ weight_IO.T, x_TI.T @ dout_TO, dout_TO.sum(0)
