"""expert_adam as a MindSpore operator, in its own file because the rest of the package does not need MindSpore."""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

if backends.chosen["expert_adam"] != "cpu" and backends.wanted_backend("expert_adam") == "composed":
    raise RuntimeError(f"expert_adam_op exists only with the cpu backend, but {backends.VARIABLE} asks for composed")

# raises CompileError if there is no compiler
_update = backends.custom_op("expert_adam", "expert_adam_op", lambda *shapes: [1], lambda *dtypes: ms.int32)


def expert_adam_op(
    weight: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    gradient: Tensor,
    experts_U: Tensor,
    step_size_U: Tensor,
    eps_U: Tensor,
    constants: Tensor,
) -> Tensor:
    """Runs `expert_adam` as an operator of a graph: the same kernel, which changes the memory of the tensors.

    Make the tensors with Tensor.from_numpy, which shares the memory of the arrays. The operator exists only with the
    cpu backend: importing it raises a RuntimeError if MINDPANGU_OPS=composed is set or no C++ compiler is found.

    Args:
        weight, moment1, moment2: float32 [E, ...], changed in place.
        gradient: float32 or float16 of the same shape; not read for experts that are not listed.
        experts_U: int32 [U], distinct, each below E; U may be 0.
        step_size_U, eps_U, constants: float32 [U], [U] and [5], the `coefficients` of the update.

    Returns:
        int32 [1], U. The update is complete when this can be read, so anything that must run after it must depend on
        this. A graph that does not use it omits the update.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.
        RuntimeError: an expert is outside E or listed twice; nothing has been changed.

    Supported modes: graph (@ms.jit) and PyNative, on the CPU; not differentiable.
    """
    tensors = (weight, moment1, moment2, gradient, experts_U, step_size_U, eps_U, constants)
    dtypes: tuple = ()
    shapes: tuple = ()
    for tensor in tensors:
        dtypes = (*dtypes, tensor.dtype)
        shapes = (*shapes, tensor.shape)
    _check(dtypes, shapes)
    return _update(weight, moment1, moment2, gradient, experts_U, step_size_U, eps_U, constants)


@ops.constexpr
def _check(dtypes: tuple, shapes: tuple) -> None:
    *states, gradient, experts, step_size, eps, constants = dtypes
    floats = {*states, step_size, eps, constants}
    if floats != {ms.float32} or gradient not in (ms.float32, ms.float16) or experts != ms.int32:
        raise TypeError(
            "expert_adam_op: expected int32 experts_U, float32 or float16 gradient and all else float32, "
            f"got {', '.join(map(str, dtypes))}"
        )
    *arrays, experts, step_size, eps, constants = shapes
    if not arrays[0] or {*arrays} != {arrays[0]} or len(experts) != 1 or {experts, step_size, eps} != {experts}:
        raise ValueError(
            "expert_adam_op: expected weight, moment1, moment2 and gradient of one shape [E, ...] and experts_U, "
            f"step_size_U and eps_U [U], got {', '.join(map(str, shapes))}"
        )
    if constants != (5,):
        raise ValueError(f"expert_adam_op: expected constants [5], got {constants}")
