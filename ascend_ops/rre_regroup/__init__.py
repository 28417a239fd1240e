"""rre_regroup: reorders rows that arrived sorted by (source, group) to the order (group, source), and back."""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

implementation = backends.choose("rre_regroup")


def rre_regroup(rows_CH: Tensor, counts_RG: Tensor) -> Tensor:
    """Transposes the order of blocks of rows, so that the rows of an all-to-all are sorted by expert.

    Args:
        rows_CH: float [C, H]; block (r, g) has counts_RG[r, g] rows. The blocks are in the order (0, 0), (0, 1), …; the
            rest of the C rows is padding.
        counts_RG: int32 [R, G]; after an exchange r is the source rank and g the group (slot · E + expert).

    Returns:
        float [C, H]: the blocks in the order (0, 0), (1, 0), …, (0, 1), …; each keeps its inner order; padding is zero.
        `rre_regroup(_, counts_RG.T)` restores the first order.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built. Counts that are negative or add up to
            more than C: the CPU kernel raises RuntimeError; the compiled composed form returns meaningless rows, but
            never reads outside rows_CH.

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
