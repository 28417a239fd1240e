"""rre_dispatch: sorts the rows of tokens by expert, in one call."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops import backends
from ascend_ops.rre_dispatch import reference

implementation = backends.choose("rre_dispatch")


def rre_dispatch(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorts rows by the expert that a fixed table assigns to each token (PanGu-Σ's RRE: no gate, nothing learned).

    Args:
        x_TH: float [T, H], one row per token.
        token_ids_T: int32 [T], token ids, below V.
        slot_ids_T: int32 [T], the domain slot of each token, below D.
        table_DV: int32 [D, V], the expert of a token inside its slot's group, below num_experts.
        num_experts: E, experts of a group.

    Returns:
        rows_TH: x's rows ordered by group (slot · E + expert), in token order inside a group.
        counts_G: int32 [D·E], number of rows of each group.
        positions_T: int32 [T], position of each token's row: rows_TH[positions_T[t]] is x_TH[t].
        invalid: int32 [1], number of tokens with an id outside the table. If it is not 0, the results are meaningless.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built; an id outside the table, in an eager
            call. The compiled CPU kernel raises RuntimeError for such an id, after which MindSpore cannot run that
            compiled function again. The compiled composed form stays inside the table, continues, and counts the id in
            `invalid`, which the caller must check.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to x_TH.
    """
    _check_arguments(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)
    return _dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)


def _check_arguments(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts):
    kinds = (x_TH.dtype, token_ids_T.dtype, slot_ids_T.dtype, table_DV.dtype)
    _check(kinds, (x_TH.shape, token_ids_T.shape, slot_ids_T.shape, table_DV.shape), num_experts)


@ops.constexpr
def _check(dtypes, shapes, num_experts):
    x_shape, token_shape, slot_shape, table_shape = shapes
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or set(dtypes[1:]) != {ms.int32}:
        raise TypeError(
            "rre_dispatch: expected x_TH of float16, 32 or 64 and int32 for token_ids_T, slot_ids_T and table_DV, "
            f"got {', '.join(map(str, dtypes))}"
        )
    if len(x_shape) != 2 or token_shape != x_shape[:1] or slot_shape != x_shape[:1] or len(table_shape) != 2:
        raise ValueError(
            "rre_dispatch: expected x_TH [T, H], token_ids_T and slot_ids_T [T] and table_DV [D, V], "
            f"got {', '.join(map(str, shapes))}"
        )
    if not isinstance(num_experts, int) or num_experts < 1:
        raise ValueError(f"rre_dispatch: num_experts is {num_experts}; expected an int of at least 1")


class _Dispatch(nn.Cell):
    """Calls the chosen implementation. Only eager calls run `__call__`, which checks the ids."""

    def __call__(self, x_TH, token_ids_T, slot_ids_T, table_DV, num_experts):
        ids = (token_ids_T.asnumpy(), slot_ids_T.asnumpy(), table_DV.asnumpy())
        reference.check_ids(*ids, num_experts)
        return super().__call__(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)

    def construct(self, x_TH, token_ids_T, slot_ids_T, table_DV, num_experts):
        return implementation.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)


_dispatch = _Dispatch()
