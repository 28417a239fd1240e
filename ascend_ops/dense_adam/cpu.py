"""dense_adam by the kernels in cpu.cc."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from ascend_ops.backends import custom_op

_update = custom_op("dense_adam", "dense_adam", lambda *_: (1,), lambda *_: ms.int32)
_squared_norm = custom_op("dense_adam", "squared_norm", lambda *_: (1,), lambda *_: ms.float32)


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
