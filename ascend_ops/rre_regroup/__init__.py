"""rre_regroup: rows that arrived sorted by (source, group) into the order (group, source), and back."""

import mindspore as ms
from mindspore import ops

from ascend_ops import backends

implementation = backends.choose("rre_regroup")


def rre_regroup(rows_CH, counts_RG):
    """Transposes the order of blocks of rows, so that what an all-to-all brought together is sorted by expert.

    Args:
        rows_CH: float [C, H]; block (a, b) has counts_RG[a, b] rows; blocks stand in the order (0, 0), (0, 1), …; the
            rest of the C rows is padding.
        counts_RG: int32 [R, G]; after an exchange A is the source rank and B the group (slot · E + expert).

    Returns:
        float [C, H]: the blocks in the order (0, 0), (1, 0), …, (0, 1), …; each keeps its inner order; padding is zero.
        `rre_regroup(_, counts_RG.T)` takes them back.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built. Counts that are negative or add up to
            more than C: RuntimeError from the CPU kernel; the compiled composed form then returns rows of no meaning,
            never from outside.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to rows_CH.
    """
    _check((rows_CH.dtype, counts_RG.dtype), (rows_CH.shape, counts_RG.shape))
    return implementation.rre_regroup(rows_CH, counts_RG)


@ops.constexpr
def _check(dtypes, shapes):
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or dtypes[1] != ms.int32:
        raise TypeError(
            f"rre_regroup: expected rows_CH of float16, 32 or 64 and int32 counts_RG, got {dtypes[0]}, {dtypes[1]}"
        )
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise ValueError(f"rre_regroup: expected rows_CH [C, H] and counts_RG [R, G], got {shapes[0]}, {shapes[1]}")
