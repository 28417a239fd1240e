"""expert_adam: AdamW on the experts that a step activated, in place in host memory (PanGu-Σ's "knowledge update")."""

import importlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ascend_ops import backends
from ascend_ops.expert_adam.coefficients import Coefficients, coefficients

__all__ = ["Coefficients", "coefficients", "expert_adam"]

implementation = backends.choose("expert_adam", device="CPU")


def expert_adam(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    experts_U: ArrayLike,
    step_counts_U: ArrayLike,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float | np.ndarray,
    weight_decay: float = 0.0,
    gradient_scale: float = 1.0,
) -> None:
    """Applies AdamW with bias correction (Loshchilov & Hutter, algorithm 2) to the listed experts only.

        g ← scale·g      m ← β1·m + (1−β1)·g      v ← β2·v + (1−β2)·g²      w ← (1−lr·λ)·w − lr·m̂ / (√v̂ + ε)

    Every backend does the same float32 operations in the same order, so all of them give the same bits.

    Args:
        weight, moment1, moment2: float32 NumPy arrays [E, ...], C-contiguous; changed in place.
        gradient: float32 or float16 of the same shape, C-contiguous; not read for experts that are not listed.
        experts_U: int [U], distinct, each below E; U may be 0.
        step_counts_U: int [U], number of updates of each listed expert, including this one (≥ 1).
        learning_rate: lr.
        beta1, beta2: β1 and β2, at least 0 and below 1.
        eps: ε, one for all experts or a float array [U].
        weight_decay: λ, decoupled from the gradient; 0 for biases.
        gradient_scale: multiplies the gradient (clipping).

    Raises:
        TypeError, ValueError: an argument is not as above. Nothing has been changed then.

    Supported modes: the host's NumPy memory. `expert_adam_op` is the same kernel as a MindSpore operator.
    """
    _check_arrays({"weight": weight, "moment1": moment1, "moment2": moment2}, gradient)
    experts = _checked_experts(experts_U, len(weight))
    scalars = coefficients(
        step_counts_U,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        gradient_scale=gradient_scale,
    )
    if scalars.step_size_U.shape != experts.shape:
        raise ValueError(
            f"expert_adam: step_counts_U {scalars.step_size_U.shape} does not match experts_U {experts.shape}"
        )
    if experts.size and weight.size:
        implementation.expert_adam(weight, moment1, moment2, gradient, experts, scalars)


def _check_arrays(changed: dict[str, np.ndarray], gradient: np.ndarray) -> None:
    for name, array in {**changed, "gradient": gradient}.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"expert_adam: {name} is a {type(array).__name__}; expected a NumPy array")
        allowed = (np.float32, np.float16) if name == "gradient" else (np.float32,)
        if array.dtype not in allowed:
            raise TypeError(
                f"expert_adam: {name} is {array.dtype}; expected {' or '.join(t.__name__ for t in allowed)}"
            )
        shape = changed["weight"].shape
        if array.ndim == 0 or array.shape != shape:
            raise ValueError(f"expert_adam: {name} has shape {array.shape}; expected [E, ...] like weight {shape}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"expert_adam: {name} with strides {array.strides} is not C-contiguous and aligned")
        if name in changed and not array.flags.writeable:
            raise ValueError(f"expert_adam: {name} is not writable, but is changed in place")


def _checked_experts(experts: ArrayLike, num_experts: int) -> np.ndarray:
    """Returns the experts as a contiguous int32 array [U]."""
    experts_U = np.asarray(experts)
    if experts_U.dtype.kind not in "iu":
        raise TypeError(f"expert_adam: experts_U is {experts_U.dtype}; expected integers")
    if experts_U.ndim != 1:
        raise ValueError(f"expert_adam: experts_U has shape {experts_U.shape}; expected [U]")
    outside = experts_U[(experts_U < 0) | (experts_U >= num_experts)]
    if outside.size:
        raise ValueError(f"expert_adam: expert {outside[0]} is outside {num_experts} experts")
    values, times = np.unique(experts_U, return_counts=True)
    if values.size < experts_U.size:
        raise ValueError(f"expert_adam: expert {values[times > 1][0]} is listed more than once")
    return np.ascontiguousarray(experts_U, np.int32)


def __getattr__(name: str) -> Any:
    # MindSpore takes seconds to import, and only the operator form needs it
    if name == "expert_adam_op":
        return importlib.import_module("ascend_ops.expert_adam.operator_form").expert_adam_op
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
