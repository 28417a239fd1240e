"""NumPy reference of dense_adam: that of expert_adam, parameter by parameter, in float64."""

from collections.abc import Mapping, Sequence

import numpy as np

from ascend_ops.expert_adam.reference import expert_adam


def dense_adam(
    weights: Sequence[np.ndarray],
    moments1: Sequence[np.ndarray],
    moments2: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    decays: Sequence[bool],
    step_count: int,
    settings: Mapping[str, float],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Takes the arguments of `dense_adam`, and those of `update_scalars`; returns new weight, moment1 and moment2 of
    each parameter, in float64."""
    updated = []
    for weight, moment1, moment2, gradient, decay in zip(weights, moments1, moments2, gradients, decays, strict=True):
        new_weight, new_moment1, new_moment2 = expert_adam(
            weight[None],
            moment1[None],
            moment2[None],
            gradient[None],
            np.array([0]),
            np.array([step_count]),
            learning_rate=settings["learning_rate"],
            beta1=settings["beta1"],
            beta2=settings["beta2"],
            eps=settings["eps"],
            weight_decay=settings["weight_decay"] if decay else 0.0,
            gradient_scale=settings["gradient_scale"],
        )
        updated.append((new_weight[0], new_moment1[0], new_moment2[0]))
    return updated


def squared_norm(gradients: Sequence[np.ndarray], factors_P: np.ndarray) -> float:
    """Returns the sum of factor · Σ x², in float64."""
    sums = [(gradient.astype(np.float64) ** 2).sum() for gradient in gradients]
    return float(np.dot(sums, factors_P))
