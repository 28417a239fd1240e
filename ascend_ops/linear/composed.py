"""linear by built-in MindSpore ops."""

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
