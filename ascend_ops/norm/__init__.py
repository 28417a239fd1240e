"""norm: LayerNorm and RMSNorm of rows, alone or after an addition to the residual stream."""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

implementation = backends.choose("norm")


def layer_norm(x_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float) -> Tensor:
    """Computes (x − mean(x)) / √(variance(x) + ε) · gamma + beta for each row (arXiv 1607.06450).

    Args:
        x_TH: float [T, H]; computed in at least fp32.
        gamma_H, beta_H: float32 (float64 for float64 rows) [H].
        epsilon: ε, above 0.

    Returns:
        float [T, H] of x_TH's dtype.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to all tensors.
    """
    _check(x_TH.dtype, x_TH.dtype, x_TH.shape, x_TH.shape, (gamma_H.dtype, beta_H.dtype), (gamma_H.shape, beta_H.shape))
    return implementation.layer_norm(x_TH, gamma_H, beta_H, epsilon)


def rms_norm(x_TH: Tensor, gamma_H: Tensor, epsilon: float) -> Tensor:
    """Computes x / √(mean(x²) + ε) · gamma for each row (arXiv 1910.07467). Arguments as for `layer_norm`."""
    _check(x_TH.dtype, x_TH.dtype, x_TH.shape, x_TH.shape, (gamma_H.dtype,), (gamma_H.shape,))
    return implementation.rms_norm(x_TH, gamma_H, epsilon)


def add_layer_norm(
    x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, beta_H: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Adds a layer's output to the residual stream and normalizes the sum for the next layer.

    Args:
        x_TH: the residual stream.
        addend_TH: the output of a layer, of x_TH's dtype and shape.

    Returns:
        x_TH + addend_TH, and its `layer_norm`, both like x_TH.
    """
    dtypes = (gamma_H.dtype, beta_H.dtype)
    _check(x_TH.dtype, addend_TH.dtype, x_TH.shape, addend_TH.shape, dtypes, (gamma_H.shape, beta_H.shape))
    return implementation.add_layer_norm(x_TH, addend_TH, gamma_H, beta_H, epsilon)


def add_rms_norm(x_TH: Tensor, addend_TH: Tensor, gamma_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Does what `add_layer_norm` does, with `rms_norm`."""
    _check(x_TH.dtype, addend_TH.dtype, x_TH.shape, addend_TH.shape, (gamma_H.dtype,), (gamma_H.shape,))
    return implementation.add_rms_norm(x_TH, addend_TH, gamma_H, epsilon)


@ops.constexpr
def _check(x, addend, x_shape, addend_shape, weights, weight_shapes):
    wide = ms.float64 if x == ms.float64 else ms.float32
    if x not in (ms.float16, ms.float32, ms.float64) or addend != x or {*weights} != {wide}:
        raise TypeError(
            "norm: expected x_TH and addend_TH of one dtype, float16, 32 or 64, and float32 gamma_H and beta_H "
            f"(float64 for float64 rows), got {', '.join(map(str, (x, addend, *weights)))}"
        )
    if len(x_shape) != 2 or addend_shape != x_shape or {*weight_shapes} != {x_shape[1:]}:
        raise ValueError(
            "norm: expected x_TH and addend_TH [T, H], gamma_H and beta_H [H], "
            f"got {', '.join(map(str, (x_shape, addend_shape, *weight_shapes)))}"
        )
