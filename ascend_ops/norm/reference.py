"""NumPy reference of norm, forward and backward."""

import numpy as np


def layer_norm(x_TH: np.ndarray, gamma_H: np.ndarray, beta_H: np.ndarray, epsilon: float) -> np.ndarray:
    """See `ascend_ops.norm`; takes any float dtype."""
    return rms_norm(x_TH - x_TH.mean(1, keepdims=True), gamma_H, epsilon) + beta_H


def rms_norm(x_TH: np.ndarray, gamma_H: np.ndarray, epsilon: float) -> np.ndarray:
    """See `ascend_ops.norm`; takes any float dtype."""
    return x_TH * _factor(x_TH, epsilon) * gamma_H


def layer_norm_backward(
    dout_TH: np.ndarray, x_TH: np.ndarray, gamma_H: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the gradients with respect to (x_TH, gamma_H, beta_H)."""
    centered_TH = x_TH - x_TH.mean(1, keepdims=True)
    dcentered_TH, dgamma_H = rms_norm_backward(dout_TH, centered_TH, gamma_H, epsilon)
    return dcentered_TH - dcentered_TH.mean(1, keepdims=True), dgamma_H, dout_TH.sum(0)


def rms_norm_backward(
    dout_TH: np.ndarray, x_TH: np.ndarray, gamma_H: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients with respect to (x_TH, gamma_H)."""
    factor_T1 = _factor(x_TH, epsilon)
    normal_TH = x_TH * factor_T1
    scaled_TH = dout_TH * gamma_H
    dx_TH = factor_T1 * (scaled_TH - normal_TH * (scaled_TH * normal_TH).mean(1, keepdims=True))
    return dx_TH, (dout_TH * normal_TH).sum(0)


def _factor(x_TH: np.ndarray, epsilon: float) -> np.ndarray:
    return 1 / np.sqrt((x_TH * x_TH).mean(1, keepdims=True) + epsilon)
