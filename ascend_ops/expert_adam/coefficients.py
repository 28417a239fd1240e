"""The scalars of an update: computed once, in float64, and shared by all backends."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Coefficients(NamedTuple):
    """Arguments of the backends: float32, rounded once.

    Attributes:
        step_size_U: [U], lr·√(1−β2ᵗ) / (1−β1ᵗ) for each expert's own step count t.
        eps_U: [U], ε·√(1−β2ᵗ).
        constants: [5], keep = 1−lr·λ, β1, β2, gain1 = (1−β1)·scale, gain2 = (1−β2)·scale².
    """

    step_size_U: np.ndarray
    eps_U: np.ndarray
    constants: np.ndarray


def coefficients(
    step_counts: ArrayLike,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float | np.ndarray,
    weight_decay: float = 0.0,
    gradient_scale: float = 1.0,
) -> Coefficients:
    """Computes the coefficients from the arguments of `ascend_ops.expert_adam.expert_adam`.

    Raises:
        TypeError: step counts are not integers.
        ValueError: a step count is below 1, a beta is outside [0, 1), float32 cannot represent an epsilon, or a
            learning rate, decay or scale is not finite.
    """
    step_counts_U = np.asarray(step_counts)
    if step_counts_U.dtype.kind not in "iu":
        raise TypeError(f"expert_adam: step_counts_U is {step_counts_U.dtype}; expected integers")
    if step_counts_U.ndim != 1:
        raise ValueError(f"expert_adam: step_counts_U has shape {step_counts_U.shape}; expected [U]")
    if step_counts_U.size and step_counts_U.min() < 1:
        raise ValueError(f"expert_adam: step count {step_counts_U.min()} is below 1: it includes this update")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"expert_adam: {name} is {beta}; expected at least 0 and below 1")
    scalars = {"learning_rate": learning_rate, "weight_decay": weight_decay, "gradient_scale": gradient_scale}
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise ValueError(f"expert_adam: {name} is {value}; expected a finite number")
    if np.shape(eps) not in ((), step_counts_U.shape):
        raise ValueError(f"expert_adam: eps has shape {np.shape(eps)}; expected one number or {step_counts_U.shape}")
    steps = step_counts_U.tolist()
    correction2_U = np.array([math.sqrt(1 - beta2**step) for step in steps])
    step_size_U = [learning_rate * root / (1 - beta1**step) for root, step in zip(correction2_U, steps, strict=True)]
    eps_U = (np.asarray(eps, np.float64) * correction2_U).astype(np.float32)
    # an epsilon of 0 would give 0/0 for a gradient that was always 0
    if not (np.isfinite(eps_U) & (eps_U > 0)).all():
        raise ValueError(f"expert_adam: eps is {eps}; expected values above 0 that float32 can hold")
    gains = ((1 - beta1) * gradient_scale, (1 - beta2) * gradient_scale * gradient_scale)
    constants = (1 - learning_rate * weight_decay, beta1, beta2, *gains)
    return Coefficients(np.array(step_size_U, np.float32), eps_U, np.array(constants, np.float32))
