"""grouped_ffn: runs every expert's feed-forward network on its own, ragged group of rows."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends
from ascend_ops.grouped_ffn.network import ACTIVATIONS, TENSORS, activate, fast_gelu, index_of

__all__ = ["TENSORS", "activate", "fast_gelu", "feed_forward", "grouped_ffn"]

implementation = backends.choose("grouped_ffn")


def grouped_ffn(
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    block_rows: int = 0,
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """Computes fast_gelu(rows · up + up_bias) · down + down_bias for each group of rows with its own expert's weights.

    fast_gelu(u) = u · sigmoid(1.702 u), PanGu-α's activation. That is the default; in general an expert computes

        h · down + down_bias   where   h = a(rows · up + up_bias), or a(rows · gate + gate_bias) · (rows · up + up_bias)
        and   a(u) = f(u), or the series Σᵢ f(scaleᵢ ⊙ u + shiftᵢ) of PanGu-π (arXiv 2312.17276, eq. 7)

    with the biases, gate, scale and shift that the expert has: SwiGLU is ("gate", "up", "down") with f = silu.

    Args:
        rows_TH: float [T, H], sorted by group, without gaps. A slot may have any number of rows, or none. Rows beyond
            the sum of the counts are padding.
        counts_G: int32 [D·E], number of rows of each group (slot · E + expert), at most T in total.
        slabs: for each of the D slots an expert's tensors, as `tensors` names them: gate and up [E, H, F], gate_bias
            and up_bias [E, F], scale and shift [E, n, F], down [E, F, H], down_bias [E, H]; all of rows_TH's dtype, and
            not copied.
        block_rows: C, rows that the composed form computes for every expert before it overflows; 0 takes the mean load
            ⌈T/(D·E)⌉. It does not change the result.
        tensors: names, in the order "gate", "gate_bias", "up", "up_bias", "scale", "shift", "down", "down_bias".
        activation: f, "fast_gelu" or "silu".

    Returns:
        float [T, H], in the order of rows_TH; padding gives zeros. An expert without rows has a gradient of zeros, and
        the CPU kernel does not read its weights.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to rows_TH and all slabs.
    """
    dtypes: tuple = (rows_TH.dtype, counts_G.dtype)
    shapes: tuple = (rows_TH.shape, counts_G.shape)
    for slab in slabs:
        dtypes = (*dtypes, slab.dtype)
        shapes = (*shapes, slab.shape)
    _check(dtypes, shapes, block_rows, tensors, activation)
    return implementation.grouped_ffn(rows_TH, counts_G, slabs, block_rows, tensors, activation)


def feed_forward(
    rows_TH: Tensor, weights: Sequence[Tensor], tensors: Sequence[str] = TENSORS, activation: str = "fast_gelu"
) -> Tensor:
    """Computes the same network for all rows: the feed-forward network of a dense layer.

    Args:
        rows_TH: float [T, H].
        weights: the network's tensors, as `tensors` names them: those of one expert, without the axis E. Matrices,
            scales and shifts have rows_TH's dtype; biases have that dtype or float32.
        tensors, activation: as for `grouped_ffn`.

    Returns:
        float [T, H].

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.
    """
    dtypes: tuple = (rows_TH.dtype,)
    shapes: tuple = (rows_TH.shape,)
    for weight in weights:
        dtypes = (*dtypes, weight.dtype)
        shapes = (*shapes, weight.shape)
    _check_feed_forward(dtypes, shapes, tensors, activation)
    return implementation.feed_forward(rows_TH, weights, tensors, activation)


@ops.constexpr
def _check(dtypes, shapes, block_rows, tensors, activation):
    rows, counts, *slabs = shapes
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or dtypes[1] != ms.int32 or {*dtypes[2:]} != {dtypes[0]}:
        raise TypeError(
            "grouped_ffn: expected rows_TH and slabs of one dtype, float16, 32 or 64, and int32 counts_G, "
            f"got {', '.join(map(str, dtypes))}"
        )
    _check_activation("grouped_ffn", activation)
    size = len(tensors)
    num_slots = len(slabs) // size
    if not slabs or len(slabs) % size or len(rows) != 2 or len(slabs[0]) != 3:
        raise ValueError(
            f"grouped_ffn: expected rows_TH [T, H] and {size} slabs per slot, the first of them [E, H, F], "
            f"got {', '.join(map(str, shapes))}"
        )
    num_experts, _, inner = slabs[0]
    terms = slabs[index_of(tensors, "scale")][1] if "scale" in tensors else 0
    one_slot = [(num_experts, *shape) for shape in _shapes("grouped_ffn", tensors, rows[1], inner, terms)]
    if slabs != one_slot * num_slots or counts != (num_slots * num_experts,):
        expected = ", ".join(f"{name} {list(shape)}" for name, shape in zip(tensors, one_slot, strict=True))
        raise ValueError(
            f"grouped_ffn: expected counts_G [D·E], and for each slot {expected}, got {', '.join(map(str, shapes))}"
        )
    if not isinstance(block_rows, int) or block_rows < 0:
        raise ValueError(f"grouped_ffn: block_rows is {block_rows}; expected an int of at least 0")


@ops.constexpr
def _check_feed_forward(dtypes, shapes, tensors, activation):
    _check_activation("feed_forward", activation)
    rows, *weights = shapes
    if len(rows) != 2 or len(weights) != len(tensors) or not weights or len(weights[0]) != 2:
        raise ValueError(
            f"feed_forward: expected rows_TH [T, H] and {len(tensors)} weights, the first of them [H, F], "
            f"got {', '.join(map(str, shapes))}"
        )
    terms = weights[index_of(tensors, "scale")][0] if "scale" in tensors else 0
    expected = _shapes("feed_forward", tensors, rows[1], weights[0][1], terms)
    if weights != expected:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in zip(tensors, expected, strict=True))
        raise ValueError(f"feed_forward: expected {listed}, got {', '.join(map(str, weights))}")
    rows_dtype, *of_weights = dtypes
    right = rows_dtype in (ms.float16, ms.float32, ms.float64)
    for name, dtype in zip(tensors, of_weights, strict=True):
        right = right and dtype in ((rows_dtype, ms.float32) if name.endswith("_bias") else (rows_dtype,))
    if not right:
        raise TypeError(
            "feed_forward: expected rows_TH and weights of one dtype, float16, 32 or 64, and biases of that dtype or "
            f"float32, got {', '.join(map(str, dtypes))}"
        )


def _check_activation(function, activation):
    if activation not in ACTIVATIONS:
        raise ValueError(f"{function}: activation is {activation!r}; expected {' or '.join(ACTIVATIONS)}")


def _shapes(function, tensors, hidden, inner, terms):
    """Returns the shapes of an expert's tensors. Raises ValueError if they do not make a network."""
    whole = {
        "gate": (hidden, inner),
        "gate_bias": (inner,),
        "up": (hidden, inner),
        "up_bias": (inner,),
        "scale": (terms, inner),
        "shift": (terms, inner),
        "down": (inner, hidden),
        "down_bias": (hidden,),
    }
    known = tuple(name for name in whole if name in tensors)
    if known != tuple(tensors) or not {"up", "down"} <= {*tensors} or ("scale" in tensors) != ("shift" in tensors):
        raise ValueError(
            f"{function}: tensors are {', '.join(tensors)}; expected some of {', '.join(whole)} in this order, up and "
            "down among them, and scale with shift"
        )
    return [whole[name] for name in tensors]
