"""linear by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

import mindspore as ms
from mindspore import Tensor

from ascend_ops.backends import custom_op
from ascend_ops.linear import composed

_backward = custom_op(
    "linear", "linear_backward", lambda dout, x, weight: (x, weight), lambda dout, x, weight: (x, weight)
)
_backward_with_bias = custom_op(
    "linear",
    "linear_backward",
    lambda dout, x, weight: (x, weight, weight[1:]),
    lambda dout, x, weight: (x, weight, weight),
)


def _bprop(x_TI, weight_IO, out, dout):
    return _backward(dout, x_TI, weight_IO)


def _bprop_with_bias(x_TI, weight_IO, bias_O, out, dout):
    return _backward_with_bias(dout, x_TI, weight_IO)


_forward = custom_op("linear", "linear", lambda x, weight: (x[0], weight[1]), lambda x, weight: x, _bprop)
_forward_with_bias = custom_op(
    "linear", "linear", lambda x, weight, bias: (x[0], weight[1]), lambda x, *_: x, _bprop_with_bias
)


def linear(x_TI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """See `ascend_ops.linear`."""
    if x_TI.dtype != ms.float32:
        return composed.linear(x_TI, weight_IO, bias_O)
    if bias_O is None:
        return _forward(x_TI, weight_IO)
    return _forward_with_bias(x_TI, weight_IO, bias_O)
