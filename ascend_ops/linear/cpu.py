"""linear by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.linear import composed


class _Linears(nn.Cell):
    """The kernels for one or several matrices of the same input, with or without biases.

    A Cell, because a custom op's bprop cannot take a variable number of inputs in graph mode.
    """

    def __init__(self, num_matrices, has_biases):
        super().__init__()
        self.num_matrices = num_matrices
        self.stride = 2 if has_biases else 1

        def product_shapes(x, *weights):
            shapes = tuple((x[0], weight[1]) for weight in weights[:: self.stride])
            return shapes if num_matrices > 1 else shapes[0]

        def product_dtypes(x, *_):
            return (x,) * num_matrices if num_matrices > 1 else x

        def gradient_shapes(*inputs):
            x, *weights = inputs[num_matrices:]
            if not has_biases:
                return (x, *weights)
            return (x, *(each for weight in weights for each in (weight, weight[1:])))

        def gradient_dtypes(*inputs):
            return (inputs[0],) * (1 + num_matrices * self.stride)

        self.forward_kernel = custom_op("linear", "linear", product_shapes, product_dtypes)
        variant = "with biases" if has_biases else "without"
        self.backward_kernel = custom_op("linear", "linear_backward", gradient_shapes, gradient_dtypes, variant=variant)

    def construct(self, x_TI, weights):
        return self.forward_kernel(x_TI, *weights)

    def bprop(self, x_TI, weights, out, dout):
        if self.num_matrices == 1:
            gradients = self.backward_kernel(dout, x_TI, weights[0])
        else:
            gradients = self.backward_kernel(*dout, x_TI, *weights[:: self.stride])
        return gradients[0], gradients[1:]


_cells: dict[tuple[int, bool], nn.Cell] = {}


@ops.constexpr
def _cell(num_matrices, has_biases):
    key = (num_matrices, has_biases)
    if key not in _cells:
        _cells[key] = _Linears(*key)
    return _cells[key]


def linear(x_TI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """See `ascend_ops.linear`."""
    if x_TI.dtype != ms.float32:
        return composed.linear(x_TI, weight_IO, bias_O)
    if bias_O is None:
        return _cell(1, False)(x_TI, (weight_IO,))
    return _cell(1, True)(x_TI, (weight_IO, bias_O))


def linears(x_TI: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """See `ascend_ops.linear`."""
    if x_TI.dtype != ms.float32:
        return composed.linears(x_TI, weights, biases)
    if len(biases) == 0:
        return _cell(len(weights), False)(x_TI, weights)
    pairs: tuple[Tensor, ...] = ()
    for i in range(len(weights)):
        pairs = (*pairs, weights[i], biases[i])
    return _cell(len(weights), True)(x_TI, pairs)
