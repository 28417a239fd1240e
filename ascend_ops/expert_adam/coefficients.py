"""The numbers that an update needs besides its arrays: computed once, in float64, and shared by all backends."""

import math
from typing import NamedTuple

import numpy as np


class Coefficients(NamedTuple):
    """What the backends take: float32, rounded once.

    Attributes:
        step_size_U: [U], lr·√(1−β2ᵗ) / (1−β1ᵗ) of each expert's own step count t.
        eps_U: [U], ε·√(1−β2ᵗ).
        constants: [5], keep = 1−lr·λ, β1, β2, gain1 = (1−β1)·scale, gain2 = (1−β2)·scale².
    """

    step_size_U: np.ndarray
    eps_U: np.ndarray
    constants: np.ndarray


def coefficients(
    step_counts_U, *, learning_rate, beta1, beta2, eps, weight_decay=0.0, gradient_scale=1.0
) -> Coefficients:
    """See `ascend_ops.expert_adam.expert_adam`, whose arguments these are.

    Raises:
        TypeError: step counts that are not integers.
        ValueError: step counts below 1, betas outside [0, 1), an epsilon that float32 cannot hold, a learning rate,
            decay or scale that is not finite.
    """
    step_counts_U = np.asarray(step_counts_U)
    if step_counts_U.dtype.kind not in "iu":
        raise TypeError(f"expert_adam: step_counts_U is {step_counts_U.dtype}; expected integers")
    if step_counts_U.ndim != 1:
        raise ValueError(f"expert_adam: step_counts_U has shape {step_counts_U.shape}; expected [U]")
    if step_counts_U.size and step_counts_U.min() < 1:
        raise ValueError(f"expert_adam: step count {step_counts_U.min()} is below 1: it includes this update")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"expert_adam: {name} is {beta}; expected at least 0 and below 1")
    numbers = {"learning_rate": learning_rate, "weight_decay": weight_decay, "gradient_scale": gradient_scale}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"expert_adam: {name} is {number}; expected a finite number")
    if np.shape(eps) not in ((), step_counts_U.shape):
        raise ValueError(f"expert_adam: eps has shape {np.shape(eps)}; expected one number or {step_counts_U.shape}")
    steps = step_counts_U.tolist()
    correction2_U = np.array([math.sqrt(1 - beta2**step) for step in steps])
    step_size_U = [learning_rate * root / (1 - beta1**step) for root, step in zip(correction2_U, steps, strict=True)]
    eps_U = (np.asarray(eps, np.float64) * correction2_U).astype(np.float32)
    # an epsilon of 0 would make 0/0 of a gradient that was always 0
    if not (np.isfinite(eps_U) & (eps_U > 0)).all():
        raise ValueError(f"expert_adam: eps is {eps}; expected values above 0 that float32 can hold")
    gains = ((1 - beta1) * gradient_scale, (1 - beta2) * gradient_scale * gradient_scale)
    constants = (1 - learning_rate * weight_decay, beta1, beta2, *gains)
    return Coefficients(np.array(step_size_U, np.float32), eps_U, np.array(constants, np.float32))
