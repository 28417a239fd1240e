"""linear: x · weight + bias in one launch, for one matrix or several, and all gradients in another."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

implementation = backends.choose("linear")


def linear(x_TI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Computes x · weight + bias.

    Args:
        x_TI: float [T, I].
        weight_IO: float [I, O], of x_TI's dtype.
        bias_O: float [O], of x_TI's dtype or float32; it is added in at least fp32. None for no bias.

    Returns:
        float [T, O] of x_TI's dtype.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to all arguments.
    """
    dtypes: tuple = (x_TI.dtype, weight_IO.dtype)
    shapes: tuple = (x_TI.shape, weight_IO.shape)
    if bias_O is not None:
        dtypes = (*dtypes, bias_O.dtype)
        shapes = (*shapes, bias_O.shape)
    _check(dtypes, shapes)
    return implementation.linear(x_TI, weight_IO, bias_O)


def linears(x_TI: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """Computes `linear` for several matrices of the same input, such as queries, keys and values.

    Args:
        weights: at least two tensors like weight_IO.
        biases: a tensor like bias_O for each of them; () for no biases.

    Returns:
        The products, in order.

    Raises:
        TypeError, ValueError: as for `linear`, or the numbers of weights and biases do not fit.
    """
    _check_counts(len(weights), len(biases))
    for i in range(len(weights)):
        dtypes: tuple = (x_TI.dtype, weights[i].dtype)
        shapes: tuple = (x_TI.shape, weights[i].shape)
        if len(biases) > 0:
            dtypes = (*dtypes, biases[i].dtype)
            shapes = (*shapes, biases[i].shape)
        _check(dtypes, shapes)
    return implementation.linears(x_TI, weights, biases)


@ops.constexpr
def _check_counts(num_weights, num_biases):
    if num_weights < 2 or num_biases not in (0, num_weights):
        raise ValueError(
            f"linears: expected at least two weights, and as many biases or none, got {num_weights} and {num_biases}"
        )


@ops.constexpr
def _check(dtypes, shapes):
    x, weight, *bias = dtypes
    if x not in (ms.float16, ms.float32, ms.float64) or weight != x or (bias and bias[0] not in (x, ms.float32)):
        raise TypeError(
            "linear: expected x_TI and weight_IO of one dtype, float16, 32 or 64, and bias_O of that dtype or float32, "
            f"got {', '.join(map(str, dtypes))}"
        )
    x, weight, *bias = shapes
    if len(x) != 2 or len(weight) != 2 or x[1] != weight[0] or (bias and bias[0] != weight[1:]):
        raise ValueError(
            f"linear: expected x_TI [T, I], weight_IO [I, O] and bias_O [O], got {', '.join(map(str, shapes))}"
        )
