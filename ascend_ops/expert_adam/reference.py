"""NumPy reference of expert_adam: the textbook formula, in float64."""

import numpy as np


def expert_adam(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    experts_U: np.ndarray,
    step_counts_U: np.ndarray,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float | np.ndarray,
    weight_decay: float = 0.0,
    gradient_scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes the arguments of `ascend_ops.expert_adam.expert_adam`; returns new weight, moment1, moment2 in float64."""
    w, m, v = (array.astype(np.float64) for array in (weight, moment1, moment2))
    for expert, step, epsilon in zip(experts_U, step_counts_U, np.broadcast_to(eps, len(experts_U)), strict=True):
        g = gradient[expert].astype(np.float64) * gradient_scale
        m[expert] = beta1 * m[expert] + (1 - beta1) * g
        v[expert] = beta2 * v[expert] + (1 - beta2) * g * g
        m_hat = m[expert] / (1 - beta1**step)
        v_hat = v[expert] / (1 - beta2**step)
        w[expert] -= learning_rate * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * w[expert])
    return w, m, v
