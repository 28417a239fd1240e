"""grouped_all_to_all: exchanges rows among the ranks of a group, with counts known to the host, in static buffers."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops import backends
from ascend_ops.rre_dispatch import reference as rre_reference

implementation = backends.choose("grouped_all_to_all")

from ascend_ops.grouped_all_to_all.group import Group, join  # noqa: E402  reads the choice above

__all__ = ["Group", "dispatch_all_to_all", "first_order", "grouped_all_to_all", "join"]


def first_order() -> Tensor:
    """Returns the `order` of the first exchange of a graph, float32 [1]."""
    return _zero()


@ops.constexpr
def _zero():
    return Tensor(np.zeros(1, np.float32))


def grouped_all_to_all(
    rows_QH: Tensor, send_counts_R: Tensor, receive_counts_R: Tensor, capacity: int, group: Group, order: Tensor
) -> tuple[Tensor, Tensor]:
    """Sends each rank of a group its rows, and receives the rows that the others have for this rank.

    Args:
        rows_QH: float [Q, H], sorted by destination: the first send_counts_R[0] rows go to rank 0, and so on.
        send_counts_R: int32 [R], number of rows for each rank; in total at most Q.
        receive_counts_R: int32 [R], number of rows from each rank; in total at most C.
        capacity: C, rows of the result.
        group: R ranks, from `join`.
        order: float32 [1], `first_order()` or the order that the previous exchange returned.

    Returns:
        rows_CH: float [C, H], rows from rank 0, then rank 1 …; the rest is zeros.
        order: float32 [1], for the next exchange.

    All ranks must run their exchanges in the same order, but a compiled graph does not keep the order of the source.
    `order` makes each exchange wait for the previous one; its gradient does the same for the backward exchanges, which
    run after the forward ones and in reverse. In a graph with several backward passes, the first order of a pass is the
    gradient with respect to the first order of the previous pass.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.
        RuntimeError: from the CPU kernel: the counts do not fit or differ between the ranks, or a rank has died or does
            not join the exchange in time. After that no rank can use the group. The composed form does not check this;
            it needs the same Q on all ranks, and takes no float64 in a group of several ranks.

    Supported modes: graph (@ms.jit) and PyNative; differentiable once with respect to rows_QH.
    """
    dtypes = (rows_QH.dtype, send_counts_R.dtype, receive_counts_R.dtype, order.dtype)
    _check(dtypes, (rows_QH.shape, send_counts_R.shape, receive_counts_R.shape, order.shape), capacity, group.size)
    return implementation.grouped_all_to_all(rows_QH, send_counts_R, receive_counts_R, capacity, group, order)


@ops.constexpr
def _check(dtypes, shapes, capacity, size):
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or dtypes[1:] != (ms.int32, ms.int32, ms.float32):
        raise TypeError(
            "grouped_all_to_all: expected rows_QH of float16, 32 or 64, int32 send_counts_R and receive_counts_R and a "
            f"float32 order, got {', '.join(map(str, dtypes))}"
        )
    if len(shapes[0]) != 2 or shapes[1:] != ((size,), (size,), (1,)):
        raise ValueError(
            f"grouped_all_to_all: expected rows_QH [Q, H], send_counts_R and receive_counts_R [{size}] for this group "
            f"and order [1], got {', '.join(map(str, shapes))}"
        )
    if not isinstance(capacity, int) or capacity < 1:
        raise ValueError(f"grouped_all_to_all: capacity is {capacity}; expected an int of at least 1")


def dispatch_all_to_all(
    x_TH: Tensor,
    token_ids_T: Tensor,
    slot_ids_T: Tensor,
    table_DV: Tensor,
    num_experts: int,
    send_counts_R: Tensor,
    receive_counts_R: Tensor,
    capacity: int,
    group: Group,
    order: Tensor,
    chunks: int = 1,
) -> tuple[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor], Tensor | Sequence[Tensor], Tensor, Tensor]:
    """Combines `rre_dispatch` and `grouped_all_to_all`: sends rows to the ranks that hold their experts.

    Expert e of every slot lives on rank e // (E/R). Rows are sent in the order (rank, slot, local expert), and in
    token order within each. They are written directly to where the other ranks read them, without a sorted copy. They
    arrive in the order (source rank, slot, local expert): `rre_regroup(rows_CH, counts)`, with the counts that the
    sources have for this rank, reorders them to expert order and back. A `grouped_all_to_all` with swapped counts and
    capacity T returns the rows, and `rre_combine(rows, positions_T, residual_TH)` restores token order.

    Args:
        x_TH, token_ids_T, slot_ids_T, table_DV, num_experts: as in `rre_dispatch`; R divides E.
        send_counts_R, receive_counts_R, capacity, group, order: as in `grouped_all_to_all`. All T rows are sent.
        chunks: if more than 1, splits the tokens into that many equal ranges and exchanges each separately, so that
            computing on one does not wait for the exchange of the next. The counts are then [chunks, R], and the
            capacity is that of one chunk.

    Returns:
        rows_CH: float [C, H]; the rest is zeros.
        counts_RG: int32 [R, D·E/R], number of rows that this rank sends to each (rank, slot, local expert).
        positions_T: int32 [T], position of each token's row in the order of sending.
        invalid: int32 [1], as in `rre_dispatch`.
        order: float32 [1].
        With several chunks, the first three are tuples with an entry per chunk, and positions are those within the
            chunk.

    Raises:
        The errors of `grouped_all_to_all`, and for ids outside the table those of `rre_dispatch`.

    Supported modes: graph (@ms.jit) and PyNative; differentiable once with respect to x_TH.
    """
    ids_dtypes = (x_TH.dtype, token_ids_T.dtype, slot_ids_T.dtype, table_DV.dtype)
    ids_shapes = (x_TH.shape, token_ids_T.shape, slot_ids_T.shape, table_DV.shape)
    dtypes = (*ids_dtypes, send_counts_R.dtype, receive_counts_R.dtype, order.dtype)
    shapes = (*ids_shapes, send_counts_R.shape, receive_counts_R.shape, order.shape)
    _check_dispatch(dtypes, shapes, num_experts, capacity, group.size, chunks)
    token_ids_T = _check_ids(token_ids_T, slot_ids_T, table_DV, num_experts)
    if chunks == 1:
        return implementation.dispatch_all_to_all(
            x_TH,
            token_ids_T,
            slot_ids_T,
            table_DV,
            num_experts,
            send_counts_R,
            receive_counts_R,
            capacity,
            group,
            order,
        )
    rows: tuple[Tensor, ...] = ()
    counts: tuple[Tensor, ...] = ()
    positions: tuple[Tensor, ...] = ()
    invalid = 0
    length = x_TH.shape[0] // chunks
    # the gradient of split is one concatenation; that of slices would add an array as large as x per chunk
    for k, x_chunk in enumerate(ops.split(x_TH, length, 0)):
        rows_CH, counts_RG, positions_T, wrong, order = implementation.dispatch_all_to_all(
            x_chunk,
            token_ids_T[k * length : (k + 1) * length],
            slot_ids_T[k * length : (k + 1) * length],
            table_DV,
            num_experts,
            send_counts_R[k],
            receive_counts_R[k],
            capacity,
            group,
            order,
        )
        rows = (*rows, rows_CH)
        counts = (*counts, counts_RG)
        positions = (*positions, positions_T)
        invalid = invalid + wrong
    return rows, counts, positions, invalid, order


@ops.constexpr
def _check_dispatch(dtypes, shapes, num_experts, capacity, size, chunks):
    x, tokens, slots, table, send, receive, order = shapes
    if dtypes[0] not in (ms.float16, ms.float32, ms.float64) or dtypes[1:] != (*[ms.int32] * 5, ms.float32):
        raise TypeError(
            "dispatch_all_to_all: expected x_TH of float16, 32 or 64, int32 ids, table and counts and a float32 order, "
            f"got {', '.join(map(str, dtypes))}"
        )
    if not isinstance(chunks, int) or chunks < 1 or (x and x[0] % chunks):
        raise ValueError(f"dispatch_all_to_all: {chunks} chunks do not divide {x[0] if x else 0} tokens")
    wanted = (size,) if chunks == 1 else (chunks, size)
    if len(x) != 2 or tokens != x[:1] or slots != x[:1] or len(table) != 2 or {send, receive} != {wanted}:
        raise ValueError(
            "dispatch_all_to_all: expected x_TH [T, H], token_ids_T and slot_ids_T [T], table_DV [D, V] and counts "
            f"{list(wanted)} for this group, got {', '.join(map(str, shapes))}"
        )
    if order != (1,):
        raise ValueError(f"dispatch_all_to_all: expected order [1], got {order}")
    if not isinstance(num_experts, int) or num_experts < 1 or num_experts % size:
        raise ValueError(f"dispatch_all_to_all: num_experts is {num_experts}; expected a multiple of {size} ranks")
    if not isinstance(capacity, int) or capacity < 1:
        raise ValueError(f"dispatch_all_to_all: capacity is {capacity}; expected an int of at least 1")


class _CheckIds(nn.Cell):
    """Returns the token ids. Only eager calls run `__call__`, which checks them."""

    def __call__(self, token_ids_T, slot_ids_T, table_DV, num_experts):
        rre_reference.check_ids(token_ids_T.asnumpy(), slot_ids_T.asnumpy(), table_DV.asnumpy(), num_experts)
        return token_ids_T

    def construct(self, token_ids_T, slot_ids_T, table_DV, num_experts):
        return token_ids_T


_check_ids = _CheckIds()
