"""rre_combine: returns rows sorted by expert to token order and adds the residual."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops import backends

implementation = backends.choose("rre_combine")


def rre_combine(rows_TH: Tensor, positions_T: Tensor, residual_TH: Tensor) -> Tensor:
    """Returns rows sorted by expert to token order and adds the residual, in at least fp32.

    Args:
        rows_TH: float [T, H], in the order of `rre_dispatch`.
        positions_T: int32 [T] of `rre_dispatch`: token t's row is rows_TH[positions_T[t]].
        residual_TH: float [T, H], in token order.

    Returns:
        float [T, H] of rows_TH's dtype: residual_TH + rows_TH[positions_T].

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built; positions that are not a
            permutation, in an eager call. The compiled CPU kernel raises RuntimeError for a position outside the rows;
            the compiled composed form stays inside them.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to rows_TH and residual_TH.
    """
    dtypes = (rows_TH.dtype, positions_T.dtype, residual_TH.dtype)
    _check(dtypes, (rows_TH.shape, positions_T.shape, residual_TH.shape))
    return _combine(rows_TH, positions_T, residual_TH)


@ops.constexpr
def _check(dtypes, shapes):
    rows, positions, residual = dtypes
    if rows not in (ms.float16, ms.float32, ms.float64) or residual != rows or positions != ms.int32:
        raise TypeError(
            "rre_combine: expected rows_TH and residual_TH of one dtype, float16, 32 or 64, and int32 positions_T, "
            f"got {', '.join(map(str, dtypes))}"
        )
    if len(shapes[0]) != 2 or shapes[2] != shapes[0] or shapes[1] != shapes[0][:1]:
        raise ValueError(
            "rre_combine: expected rows_TH and residual_TH both [T, H] and positions_T [T], "
            f"got {', '.join(map(str, shapes))}"
        )


class _Combine(nn.Cell):
    """Calls the chosen implementation. Only eager calls run `__call__`, which checks the positions."""

    def __call__(self, rows_TH, positions_T, residual_TH):
        positions = positions_T.asnumpy()
        if not np.array_equal(np.sort(positions), np.arange(len(positions))):
            raise ValueError(f"rre_combine: positions_T is not a permutation of {len(positions)} rows: {positions}")
        return super().__call__(rows_TH, positions_T, residual_TH)

    def construct(self, rows_TH, positions_T, residual_TH):
        return implementation.rre_combine(rows_TH, positions_T, residual_TH)


_combine = _Combine()
