"""linear by built-in MindSpore ops."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, ops


def linear(x_TI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """See `ascend_ops.linear`."""
    product_TO = ops.matmul(x_TI, weight_IO)
    if bias_O is None:
        return product_TO
    if product_TO.dtype != ms.float16:
        return product_TO + bias_O
    return ops.cast(ops.cast(product_TO, ms.float32) + bias_O, product_TO.dtype)


def linears(x_TI: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """See `ascend_ops.linear`."""
    products: tuple[Tensor, ...] = ()
    if len(biases) == 0:
        for weight in weights:
            products = (*products, linear(x_TI, weight))
        return products
    for i in range(len(weights)):
        products = (*products, linear(x_TI, weights[i], biases[i]))
    return products
