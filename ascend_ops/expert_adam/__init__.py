"""expert_adam: AdamW on the experts that a step activated, in place in host memory (PanGu-Σ's "knowledge update")."""

import importlib

import numpy as np

from ascend_ops import backends
from ascend_ops.expert_adam.coefficients import Coefficients, coefficients

__all__ = ["Coefficients", "coefficients", "expert_adam"]

implementation = backends.choose("expert_adam", device="CPU")


def expert_adam(
    weight,
    moment1,
    moment2,
    gradient,
    experts_U,
    step_counts_U,
    *,
    learning_rate,
    beta1,
    beta2,
    eps,
    weight_decay=0.0,
    gradient_scale=1.0,
) -> None:
    """AdamW with bias correction (Loshchilov & Hutter, algorithm 2) on the listed experts; the others keep every bit.

        g ← scale·g      m ← β1·m + (1−β1)·g      v ← β2·v + (1−β2)·g²      w ← (1−lr·λ)·w − lr·m̂ / (√v̂ + ε)

    Every backend does the same float32 operations in the same order, so all of them give the same bits.

    Args:
        weight, moment1, moment2: float32 NumPy arrays [E, ...], C-contiguous; changed in place.
        gradient: float32 or float16 of the same shape, C-contiguous; of experts that are not listed it is not read.
        experts_U: int [U], distinct, each below E; U may be 0.
        step_counts_U: int [U], how often each of them has been updated, this time included (≥ 1).
        learning_rate: lr.
        beta1, beta2: β1 and β2, at least 0 and below 1.
        eps: ε, one for all or a float array [U].
        weight_decay: λ, decoupled from the gradient; 0 for biases.
        gradient_scale: multiplies the gradient (clipping).

    Raises:
        TypeError, ValueError: arguments that are not as above; then nothing has been changed.

    Supported modes: the host's NumPy memory. `expert_adam_op` is the same kernel as a MindSpore operator.
    """
    _check_arrays({"weight": weight, "moment1": moment1, "moment2": moment2}, gradient)
    experts_U = _checked_experts(experts_U, len(weight))
    scalars = coefficients(
        step_counts_U,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        gradient_scale=gradient_scale,
    )
    if scalars.step_size_U.shape != experts_U.shape:
        raise ValueError(
            f"expert_adam: step_counts_U {scalars.step_size_U.shape} does not match experts_U {experts_U.shape}"
        )
    if experts_U.size and weight.size:
        implementation.expert_adam(weight, moment1, moment2, gradient, experts_U, scalars)


def _check_arrays(changed, gradient):
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


def _checked_experts(experts_U, num_experts) -> np.ndarray:
    """int32 [U], contiguous."""
    experts_U = np.asarray(experts_U)
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


def __getattr__(name):
    # MindSpore takes seconds to import, and only the operator form needs it
    if name == "expert_adam_op":
        return importlib.import_module("ascend_ops.expert_adam.operator_form").expert_adam_op
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
