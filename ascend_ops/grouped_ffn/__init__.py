"""grouped_ffn: every expert's feed-forward network on its own, ragged group of rows."""

import mindspore as ms
from mindspore import ops

from ascend_ops import backends
from ascend_ops.grouped_ffn.composed import fast_gelu

__all__ = ["fast_gelu", "grouped_ffn"]

implementation = backends.choose("grouped_ffn")


def grouped_ffn(rows_TH, counts_G, slabs, block_rows=0):
    """fast_gelu(rows · up + up_bias) · down + down_bias, each group of rows with its own expert's weights.

    fast_gelu(u) = u · sigmoid(1.702 u), PanGu-α's activation.

    Args:
        rows_TH: float [T, H], sorted by group, without gaps: a slot may have any number of rows, also none. What the
            counts leave of the T rows stands at the end and is padding.
        counts_G: int32 [D·E], rows of each group (slot · E + expert), at most T in all.
        slabs: for each of the D slots up [E, H, F], up_bias [E, F], down [E, F, H], down_bias [E, H]: 4·D tensors of
            rows_TH's dtype, which are read where they are.
        block_rows: C, rows that the composed form computes for every expert before it overflows; 0 takes the mean load
            ⌈T/(D·E)⌉. The result is the same for any.

    Returns:
        float [T, H], in the order of rows_TH; padding gives zeros. An expert without rows has a gradient of zeros, and
        the CPU kernel does not read its weights.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to rows_TH and all slabs.
    """
    dtypes, shapes = (rows_TH.dtype, counts_G.dtype), (rows_TH.shape, counts_G.shape)
    for slab in slabs:
        dtypes, shapes = (*dtypes, slab.dtype), (*shapes, slab.shape)
    _check(dtypes, shapes, block_rows)
    return implementation.grouped_ffn(rows_TH, counts_G, slabs, block_rows)


@ops.constexpr
def _check(dtypes, shapes, block_rows):
    rows, counts, *slabs = shapes
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or dtypes[1] != ms.int32 or {*dtypes[2:]} != {dtypes[0]}:
        raise TypeError(
            "grouped_ffn: expected rows_TH and slabs of one dtype, float16, 32 or 64, and int32 counts_G, "
            f"got {', '.join(map(str, dtypes))}"
        )
    num_slots = len(slabs) // 4
    if not slabs or len(slabs) % 4 or len(rows) != 2 or len(slabs[0]) != 3:
        raise ValueError(
            "grouped_ffn: expected rows_TH [T, H] and 4 slabs a slot, the first of them [E, H, F], "
            f"got {', '.join(map(str, shapes))}"
        )
    hidden, (num_experts, _, inner) = rows[1], slabs[0]
    one_slot = [(num_experts, hidden, inner), (num_experts, inner), (num_experts, inner, hidden), (num_experts, hidden)]
    if slabs != one_slot * num_slots or counts != (num_slots * num_experts,):
        raise ValueError(
            "grouped_ffn: expected counts_G [D·E], and for each slot up [E, H, F], up_bias [E, F], "
            f"down [E, F, H] and down_bias [E, H], got {', '.join(map(str, shapes))}"
        )
    if not isinstance(block_rows, int) or block_rows < 0:
        raise ValueError(f"grouped_ffn: block_rows is {block_rows}; expected an int of at least 0")
