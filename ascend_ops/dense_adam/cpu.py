"""dense_adam by the kernels in cpu.cc."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from ascend_ops.backends import custom_op

# The results' shapes and dtypes are asked for when the operator is built. The inputs are checked here, because in the
# graph a check of 300 of them takes seconds to compile.


def _update_shape(scalars, decays, *arrays):
    size = decays[0]
    if list(scalars) != [8]:
        raise ValueError(f"dense_adam: expected scalars [8], see update_scalars, got {tuple(scalars)}")
    for i in range(size):
        of_one = [tuple(shape) for shape in arrays[i::size]]
        if {*of_one} != {of_one[0]}:
            raise ValueError(
                "dense_adam: expected weight, moments and gradient of one shape, got "
                f"{', '.join(map(str, of_one))} for parameter {i}"
            )
    return (1,)


def _update_dtype(scalars, _decays, *arrays):
    _require_float32("dense_adam", (scalars, *arrays))
    return ms.int32


def _norm_shape(factors, *arrays):
    if list(factors) != [len(arrays)]:
        raise ValueError(f"squared_norm: expected a factor for each of {len(arrays)} gradients, got {tuple(factors)}")
    return (1,)


def _norm_dtype(*types):
    _require_float32("squared_norm", types)
    return ms.float32


def _require_float32(function, types):
    names = {str(each).rpartition("[")[2].rstrip("]") for each in types}  # of e.g. Ref[Tensor[Float32]]
    if names != {"Float32"}:
        raise TypeError(f"{function}: expected float32 only, got {', '.join(sorted(names))}")


_update = custom_op("dense_adam", "dense_adam", _update_shape, _update_dtype)
_squared_norm = custom_op("dense_adam", "squared_norm", _norm_shape, _norm_dtype)


def dense_adam(
    weights: Sequence[Parameter],
    moments1: Sequence[Parameter],
    moments2: Sequence[Parameter],
    gradients: Sequence[Tensor],
    decays: Sequence[bool],
    scalars: Tensor,
) -> Tensor:
    """See `ascend_ops.dense_adam`."""
    return _update(scalars, _tensor(decays), *weights, *moments1, *moments2, *gradients)


def squared_norm(gradients: Sequence[Tensor], factors_P: Tensor) -> Tensor:
    """See `ascend_ops.dense_adam`."""
    return _squared_norm(factors_P, *gradients)


@ops.constexpr
def _tensor(decays):
    return Tensor([int(each) for each in decays], ms.int32)
