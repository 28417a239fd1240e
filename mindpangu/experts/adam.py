"""Adam on NumPy memory, in place, for the experts that a step activated (PanGu-Σ's "knowledge update")."""

import math
from dataclasses import dataclass

import numpy as np

# Elements worked on at a time: the block of w, m, v, g and one scratch array stays in the L2 cache.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class AdamSettings:
    """Adam's constants. `eps` is the experts' own (PanGu-Σ: 1e-20, because their gradients are much smaller)."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def adam_in_place(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    *,
    settings: AdamSettings,
    step_count: int,
    learning_rate: float,
    gradient_scale: float,
    decay: bool,
) -> None:
    """AdamW with bias correction (Loshchilov & Hutter, algorithm 2), the moments in float32.

        m ← β1·m + (1−β1)·g      v ← β2·v + (1−β2)·g²      w ← (1−lr·λ)·w − lr·m̂ / (√v̂ + ε)

    Args:
        weight, moment1, moment2: float32, C-contiguous, same shape; changed in place.
        gradient: float32, same shape; read only.
        step_count: how often this expert has been updated, this time included (≥ 1); drives the bias correction.
        gradient_scale: multiplies the gradient (clipping).
        decay: whether weight decay applies (not for biases).
    """
    correction2 = math.sqrt(1 - settings.beta2**step_count)
    step_size = np.float32(learning_rate * correction2 / (1 - settings.beta1**step_count))
    eps = np.float32(settings.eps * correction2)
    keep = np.float32(1 - learning_rate * settings.weight_decay)
    beta1, beta2 = np.float32(settings.beta1), np.float32(settings.beta2)
    gain1 = np.float32((1 - settings.beta1) * gradient_scale)
    gain2 = np.float32((1 - settings.beta2) * gradient_scale * gradient_scale)
    flat = [array.reshape(-1) for array in (weight, moment1, moment2, gradient)]
    scratch = np.empty(min(_BLOCK, weight.size), np.float32)
    for start in range(0, weight.size, _BLOCK):
        w, m, v, g = (array[start : start + _BLOCK] for array in flat)
        q = scratch[: w.size]
        np.multiply(g, gain1, out=q)
        m *= beta1
        m += q
        np.multiply(g, g, out=q)
        q *= gain2
        v *= beta2
        v += q
        np.sqrt(v, out=q)
        q += eps
        np.divide(m, q, out=q)
        q *= step_size
        if decay:
            w *= keep
        w -= q
