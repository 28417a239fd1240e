"""dense_adam: AdamW on all dense parameters of a model in one launch, and the squared norm of their gradients."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from ascend_ops import backends
from ascend_ops.expert_adam.coefficients import coefficients

implementation = backends.choose("dense_adam")


def dense_adam(
    weights: Sequence[Parameter],
    moments1: Sequence[Parameter],
    moments2: Sequence[Parameter],
    gradients: Sequence[Tensor],
    decays: Sequence[bool],
    scalars: Tensor,
) -> Tensor:
    """Applies AdamW with bias correction to P parameters, in place: the formula of `ascend_ops.expert_adam`.

    Nothing else in the same graph may write these parameters: MindSpore would silently lose the update. The
    result must be used, or the graph omits the update.

    Args:
        weights, moments1, moments2: P Parameters each, float32.
        gradients: P tensors, float32.
        decays: whether each parameter has weight decay.
        scalars: float32 [8], `update_scalars`.

    Returns:
        int32 [1], P, which can be read once the update is complete.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit); not differentiable.
    """
    dtypes: tuple = ()
    shapes: tuple = ()
    for arrays in (weights, moments1, moments2, gradients):
        for array in arrays:
            dtypes = (*dtypes, array.dtype)
            shapes = (*shapes, array.shape)
    counts = (len(weights), len(moments1), len(moments2), len(gradients), len(decays))
    _check_update(counts, (*dtypes, scalars.dtype), (*shapes, scalars.shape))
    return implementation.dense_adam(weights, moments1, moments2, gradients, decays, scalars)


def squared_norm(gradients: Sequence[Tensor], factors_P: Tensor) -> Tensor:
    """Returns the sum of factor · Σ x² over P tensors.

    Args:
        gradients: P tensors, float32.
        factors_P: float32 [P].

    Returns:
        float32 [1].

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit); not differentiable.
    """
    dtypes: tuple = (factors_P.dtype,)
    for gradient in gradients:
        dtypes = (*dtypes, gradient.dtype)
    _check_norm(dtypes, factors_P.shape)
    return implementation.squared_norm(gradients, factors_P)


def update_scalars(
    step_count: int,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    gradient_scale: float,
) -> np.ndarray:
    """Returns the scalars of an update, float32 [8]: keep, β1, β2, and the factors of the gradient and of its square;
    the step size and ε, both with bias correction; and the gradient's scale, which the factors contain.

    Arguments and errors are those of `ascend_ops.expert_adam.coefficients`.
    """
    found = coefficients(
        [step_count],
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        gradient_scale=gradient_scale,
    )
    return np.concatenate((found.constants, found.step_size_U, found.eps_U, [gradient_scale]), dtype=np.float32)


@ops.constexpr
def _check_update(counts, dtypes, shapes):
    if {*counts} != {counts[0]} or counts[0] == 0:
        raise ValueError(
            "dense_adam: expected equal numbers of weights, first moments, second moments, gradients, and decays, got "
            f"{', '.join(map(str, counts))}"
        )
    if {*dtypes} != {ms.float32}:
        raise TypeError(f"dense_adam: expected float32 only, got {', '.join(sorted({*map(str, dtypes)}))}")
    *arrays, scalars = shapes
    size = counts[0]
    for i in range(size):
        of_one = [arrays[kind * size + i] for kind in range(4)]
        if of_one != of_one[:1] * 4:
            raise ValueError(
                "dense_adam: expected weight, moments and gradient of one shape, got "
                f"{', '.join(map(str, of_one))} for parameter {i}"
            )
    if scalars != (8,):
        raise ValueError(f"dense_adam: expected scalars [8], see update_scalars, got {scalars}")


@ops.constexpr
def _check_norm(dtypes, factors):
    if factors != (len(dtypes) - 1,) or factors == (0,):
        raise ValueError(f"squared_norm: expected a factor for each of {len(dtypes) - 1} gradients, got {factors}")
    if {*dtypes} != {ms.float32}:
        raise TypeError(f"squared_norm: expected float32 only, got {', '.join(sorted({*map(str, dtypes)}))}")
