"""The part of a feed-forward network between its matrix products, for experts and dense layers."""

from collections.abc import Sequence

from mindspore import Tensor, ops

TENSORS = ("up", "up_bias", "down", "down_bias")
"""The tensors of PanGu-α's network."""

ALL_TENSORS = ("gate", "gate_bias", "up", "up_bias", "scale", "shift", "down", "down_bias")
"""The tensors that a network may have, in their order."""

ACTIVATIONS = ("fast_gelu", "silu")


@ops.constexpr
def index_of(tensors: Sequence[str], name: str) -> int:
    """Returns the index of a tensor among an expert's tensors, or -1 if the expert lacks it."""
    return tensors.index(name) if name in tensors else -1


def fast_gelu(u: Tensor) -> Tensor:
    """Returns u · sigmoid(1.702 u), PanGu-α's activation: ops.fast_gelu in two kernels, which are also fast on the
    CPU."""
    return u * ops.sigmoid(1.702 * u)


def activate(activation: str, u: Tensor) -> Tensor:
    """Applies an activation by name."""
    if activation == "silu":
        return u * ops.sigmoid(u)
    return fast_gelu(u)


def series(activation: str, u: Tensor, scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
    """Computes Σᵢ f(scaleᵢ ⊙ u + shiftᵢ), the series-informed activation of PanGu-π (arXiv 2312.17276, eq. 7).

    Args:
        activation: name of f.
        u: input.
        scales, shifts: tuples with one tensor per term, each of a shape that broadcasts to u's.
    """
    total = activate(activation, u * scales[0] + shifts[0])
    for i in range(1, len(scales)):
        total = total + activate(activation, u * scales[i] + shifts[i])
    return total
