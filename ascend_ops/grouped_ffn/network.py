"""What a feed-forward network computes between its products, for experts and for dense layers alike."""

from mindspore import ops

TENSORS = ("up", "up_bias", "down", "down_bias")
"""PanGu-α's network, which the kernels have."""

ACTIVATIONS = ("fast_gelu", "silu")


@ops.constexpr
def place(tensors, name):
    """Where a tensor stands among an expert's; -1 for one that it does not have."""
    return tensors.index(name) if name in tensors else -1


@ops.constexpr
def is_pangu_alpha(tensors, activation):
    """Whether this is the network that the kernels have."""
    return tuple(tensors) == TENSORS and activation == "fast_gelu"


def fast_gelu(u):
    """u · sigmoid(1.702 u), PanGu-α's activation (ops.fast_gelu, in two kernels that are fast on the CPU too)."""
    return u * ops.sigmoid(1.702 * u)


def activate(activation, u):
    """f(u), by name."""
    if activation == "silu":
        return u * ops.sigmoid(u)
    return fast_gelu(u)


def series(activation, u, scales, shifts):
    """Σᵢ f(scaleᵢ ⊙ u + shiftᵢ): the series-informed activation of PanGu-π (arXiv 2312.17276, eq. 7).

    Args:
        scales, shifts: tuples of as many tensors as there are terms, each of a shape that broadcasts to u's.
    """
    total = activate(activation, u * scales[0] + shifts[0])
    for i in range(1, len(scales)):
        total = total + activate(activation, u * scales[i] + shifts[i])
    return total
