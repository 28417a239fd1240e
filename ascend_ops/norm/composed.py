"""norm by built-in MindSpore ops."""

import mindspore as ms
from mindspore import Tensor, ops

_primitives: dict[float, ops.Primitive] = {}  # made once, not in every call


@ops.constexpr
def _normalize(epsilon):
    if epsilon not in _primitives:
        _primitives[epsilon] = ops.LayerNorm(-1, -1, epsilon)
    return _primitives[epsilon]


def layer_norm(x_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float) -> Tensor:
    """See `ascend_ops.norm`."""
    if x_TH.dtype == ms.float64:
        return _layer_norm_in_double(x_TH, gamma_H, beta_H, epsilon)
    norm_TH = _normalize(epsilon)(_wide(x_TH), gamma_H, beta_H)[0]
    return _narrow(norm_TH, x_TH.dtype)


def rms_norm(x_TH: Tensor, gamma_H: Tensor, epsilon: float) -> Tensor:
    """See `ascend_ops.norm`."""
    wide_TH = _wide(x_TH)
    factor_T1 = ops.rsqrt((wide_TH * wide_TH).mean(1, keep_dims=True) + epsilon)
    return _narrow(wide_TH * factor_T1 * gamma_H, x_TH.dtype)


def add_layer_norm(
    x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.norm`."""
    sum_TH = x_TH + addend_TH
    return sum_TH, layer_norm(sum_TH, gamma_H, beta_H, epsilon)


def add_rms_norm(x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.norm`."""
    sum_TH = x_TH + addend_TH
    return sum_TH, rms_norm(sum_TH, gamma_H, epsilon)


def _layer_norm_in_double(x_TH, gamma_H, beta_H, epsilon):
    centered_TH = x_TH - x_TH.mean(1, keep_dims=True)
    factor_T1 = ops.rsqrt((centered_TH * centered_TH).mean(1, keep_dims=True) + epsilon)
    return centered_TH * factor_T1 * gamma_H + beta_H


def _wide(x):
    return ops.cast(x, ms.float32) if x.dtype == ms.float16 else x


def _narrow(x, dtype):
    return ops.cast(x, dtype) if dtype == ms.float16 else x
