"""norm by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.norm import composed


def _measured(x):
    """Returns the shape of the mean and the factor of each row."""
    return (x[0], 2)


class _Norm(nn.Cell):
    """One of the four norms.

    Args:
        name: name of its kernel.
        adds: whether the kernel takes an addend and returns the sum too.
    """

    def __init__(self, name, adds):
        super().__init__()
        self.adds = adds
        num_arrays = 2 if adds else 1  # inputs [T, H] of the forward kernel
        self.forward_kernel = custom_op(
            "norm",
            name,
            lambda x, *_: (*[x] * num_arrays, _measured(x)),
            lambda x, *_: (*[x] * num_arrays, x),
        )
        num_weights = 2 if "layer" in name else 1
        self.backward_kernel = custom_op(
            "norm",
            f"{name}_backward",
            lambda dout, *inputs: (dout, *[inputs[num_arrays]] * num_weights),
            lambda dout, *inputs: (dout, *[inputs[num_arrays]] * num_weights),
        )

    def construct(self, x_TH, weights, epsilon):
        return self.forward_kernel(x_TH, *weights, epsilon)

    def bprop(self, x_TH, weights, epsilon, out, dout):
        if self.adds:
            gradients = self.backward_kernel(dout[1], dout[0], out[0], weights[1], out[2])
            return gradients[0], (gradients[0], *gradients[1:]), ops.ZerosLike()(epsilon)
        gradients = self.backward_kernel(dout[0], x_TH, weights[0], out[1])
        return gradients[0], gradients[1:], ops.ZerosLike()(epsilon)


_layer_norm = _Norm("layer_norm", adds=False)
_rms_norm = _Norm("rms_norm", adds=False)
_add_layer_norm = _Norm("add_layer_norm", adds=True)
_add_rms_norm = _Norm("add_rms_norm", adds=True)


def layer_norm(x_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float) -> Tensor:
    """See `ascend_ops.norm`."""
    if x_TH.dtype != ms.float32:
        return composed.layer_norm(x_TH, gamma_H, beta_H, epsilon)
    return _layer_norm(x_TH, (gamma_H, beta_H), _tensor(epsilon))[0]


def rms_norm(x_TH: Tensor, gamma_H: Tensor, epsilon: float) -> Tensor:
    """See `ascend_ops.norm`."""
    if x_TH.dtype != ms.float32:
        return composed.rms_norm(x_TH, gamma_H, epsilon)
    return _rms_norm(x_TH, (gamma_H,), _tensor(epsilon))[0]


def add_layer_norm(
    x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.norm`."""
    if x_TH.dtype != ms.float32:
        return composed.add_layer_norm(x_TH, addend_TH, gamma_H, beta_H, epsilon)
    found = _add_layer_norm(x_TH, (addend_TH, gamma_H, beta_H), _tensor(epsilon))
    return found[0], found[1]


def add_rms_norm(x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.norm`."""
    if x_TH.dtype != ms.float32:
        return composed.add_rms_norm(x_TH, addend_TH, gamma_H, epsilon)
    found = _add_rms_norm(x_TH, (addend_TH, gamma_H), _tensor(epsilon))
    return found[0], found[1]


@ops.constexpr
def _tensor(value):
    return Tensor([value], ms.float32)
