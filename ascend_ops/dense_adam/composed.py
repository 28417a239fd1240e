"""dense_adam by built-in MindSpore ops: a launch or two for each parameter.

The functions are mapped over all parameters instead of being called in a loop: a compiled loop nests each call in the
next, and about 500 calls nest too deeply. A mapped function must take inputs of the graph as arguments (`partial`) and
must not close over them.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

_adam_in_place = ops.Adam()
_for_each = ops.HyperMap()
_zero = Tensor(np.float32(0))  # as β^t: no bias correction, because step size and ε already contain it


def dense_adam(
    weights: Sequence[Parameter],
    moments1: Sequence[Parameter],
    moments2: Sequence[Parameter],
    gradients: Sequence[Tensor],
    decays: Sequence[bool],
    scalars: Tensor,
) -> Tensor:
    """See `ascend_ops.dense_adam`."""
    decayed: tuple = ()
    for i in range(len(weights)):
        if decays[i]:
            decayed = (*decayed, weights[i])
    if len(decayed) > 0:
        _for_each(ops.partial(_decay, scalars[0]), decayed)
    adam = ops.partial(_adam, scalars[5], scalars[1], scalars[2], scalars[6], scalars[7])
    _for_each(adam, weights, moments1, moments2, gradients)
    return _count(len(weights))


def squared_norm(gradients: Sequence[Tensor], factors_P: Tensor) -> Tensor:
    """See `ascend_ops.dense_adam`."""
    return (ops.stack(_for_each(_sum_of_squares, gradients)) * factors_P).sum(keepdims=True)


def _decay(keep, weight):
    return ops.assign(weight, weight * keep)


def _adam(step_size, beta1, beta2, eps, scale, weight, moment1, moment2, gradient):
    return _adam_in_place(weight, moment1, moment2, _zero, _zero, step_size, beta1, beta2, eps, gradient * scale)


def _sum_of_squares(gradient):
    return (gradient * gradient).sum()


@ops.constexpr
def _count(count):
    return Tensor([count], ms.int32)
