"""grouped_all_to_all by HCCL's AlltoAllV. If the AscendC kernel was built, it sorts rows into the order of sending.

Unverified on hardware. Old versions of CANN silently return zeros from AlltoAllV (seen by others on 910A), so a group
is tested when it is joined. If the test fails, the group warns and exchanges by AllGather, with R times the traffic.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops import backends
from ascend_ops.ascend.operators import takes_rows
from ascend_ops.grouped_all_to_all import composed

_log = logging.getLogger("ascend_ops")


class AllToAll(nn.Cell):
    """The exchange of one group, for rows and counts as `grouped_all_to_all` takes them.

    Args:
        name: name of HCCL's group.
        wide: given if HCCL's group has ranks that exchange no rows: for each of its ranks, the rank in our group, or
            −1 for none.
    """

    def __init__(self, name: str, wide: Sequence[int] | None = None):
        super().__init__()
        self.group = name
        self.count_of_rank = None
        if wide is not None:
            # ranks that exchange nothing read the zero after the counts
            size = max(wide) + 1
            self.count_of_rank = Tensor(np.array([size if rank < 0 else rank for rank in wide], np.int32))

    def construct(self, rows_QH, send_counts_R, receive_counts_R, zeros_CH, order):
        return self.exchange(rows_QH, send_counts_R, receive_counts_R, zeros_CH, order)

    def bprop(self, rows_QH, send_counts_R, receive_counts_R, zeros_CH, order, out, dout):
        zeros = ops.ZerosLike()
        # ordered after the backward of the next exchange (dout) and after this exchange itself (out)
        drows_QH, order = self.exchange(dout[0], receive_counts_R, send_counts_R, zeros(rows_QH), dout[1] + out[1])
        return drows_QH, zeros(send_counts_R), zeros(receive_counts_R), zeros(zeros_CH), order

    def widened(self, counts_R):
        """Returns the counts for all ranks of HCCL's group."""
        nothing = ops.ZerosLike()(ops.Slice()(counts_R, (0,), (1,)))
        return ops.Gather()(ops.Concat(0)((counts_R, nothing)), self.count_of_rank, 0)

    def exchange(self, rows, send_counts_R, receive_counts_R, zeros, order):
        """Returns as many rows as `zeros` has (those that arrive, then zeros), and the order token."""
        hidden = rows.shape[1]
        if self.count_of_rank is not None:
            send_counts_R = self.widened(send_counts_R)
            receive_counts_R = self.widened(receive_counts_R)
        sent = ops.Depend()(ops.Reshape()(rows, (-1,)), order)
        arrived = ops.AlltoAllV(group=self.group, block_size=hidden)(sent, send_counts_R, receive_counts_R)
        # at compile time only the number of returned rows is known, not the number of rows that arrive
        filled = ops.Concat(0)((arrived, ops.Reshape()(zeros, (-1,))))
        out = ops.Reshape()(ops.Slice()(filled, (0,), (zeros.shape[0] * hidden,)), zeros.shape)
        return out, ops.Depend()(order, out)


def exchange_of_group(
    name: str,
    rank: int,
    size: int,
    around: tuple[str, Sequence[int]] | None = None,
    whole_nodes: bool = False,
    agree: Callable[[bool], bool] = bool,
) -> nn.Cell:
    """Returns the exchange of a `Group`: AlltoAllV if it works, otherwise AllGather or AllReduce.

    Args:
        name, rank, size: as in `Group`.
        around: (name, wide) of a group of complete nodes that contains this one, see `AllToAll`; None for none.
        whole_nodes: use the group of complete nodes without trying this group first.
        agree: returns whether a flag is set on any rank; all ranks call it.
    """
    if size == 1 or ms.get_context("device_target") != "Ascend":
        return composed.Exchange(name, rank, size)
    candidates: list[tuple[Any, ...]] = [] if whole_nodes else [(name,)]
    if around is not None:
        candidates.append(around)
    for candidate in candidates:
        exchange = AllToAll(*candidate)
        problem = self_test(exchange, rank, size)
        if not agree(problem is not None):
            return exchange
        _log.warning("group %s: AlltoAllV %s", candidate[0], problem or "fails on another rank")
    _log.warning("group %s: exchanging rows by AllGather, which moves %d times as much; CANN 8.5 may help", name, size)
    return composed.Exchange(name, rank, size, all_gather=True)


def self_test(exchange: nn.Cell, rank: int, size: int) -> str | None:
    """Sends rank r's row r · R + t to rank t, t + 1 times. Returns what is wrong with the rows that arrive, or None."""
    send = np.arange(1, size + 1, dtype=np.int32)
    receive = np.full(size, rank + 1, np.int32)
    rows = np.repeat(rank * size + np.arange(size, dtype=np.float32) + 1, send)[:, None] * np.ones((1, 16), np.float32)
    expected = np.repeat(np.arange(size, dtype=np.float32) * size + rank + 1, receive)
    zeros = np.zeros((len(expected) + 1, 16), np.float32)
    order = np.zeros(1, np.float32)
    try:
        out, _ = exchange(*map(Tensor, (rows, send, receive, zeros, order)))
        arrived = out.asnumpy()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"fails ({str(error).splitlines()[0]})"
    if not arrived.any():
        return "returns zeros"
    if not np.array_equal(arrived[:-1], np.broadcast_to(expected[:, None], (len(expected), 16))):
        return "returns wrong rows"
    return None


_dispatch = backends.choose("rre_dispatch")
_has_kernel = hasattr(_dispatch, "dispatch_to_ranks")


@ops.constexpr
def _zeros(shape):
    return Tensor(np.zeros(shape, np.float32))


def grouped_all_to_all(
    rows_QH: Tensor, send_counts_R: Tensor, receive_counts_R: Tensor, capacity: int, group: Any, order: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.grouped_all_to_all`."""
    if not group.by_all_to_all:
        return composed.grouped_all_to_all(rows_QH, send_counts_R, receive_counts_R, capacity, group, order)
    zeros_CH = ops.cast(_zeros((capacity, rows_QH.shape[1])), rows_QH.dtype)
    return group.exchange(rows_QH, send_counts_R, receive_counts_R, zeros_CH, order)


def dispatch_all_to_all(
    x_TH: Tensor,
    token_ids_T: Tensor,
    slot_ids_T: Tensor,
    table_DV: Tensor,
    num_experts: int,
    send_counts_R: Tensor,
    receive_counts_R: Tensor,
    capacity: int,
    group: Any,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `ascend_ops.grouped_all_to_all`."""
    ids = (token_ids_T, slot_ids_T, table_DV, num_experts)
    if _has_kernel and takes_rows(x_TH.shape, x_TH.dtype):
        rows_TH, counts_G, positions_T, invalid = _dispatch.dispatch_to_ranks(x_TH, *ids, group.size)
    else:
        rows_TH, counts_G, positions_T, invalid = composed.dispatch_to_ranks(x_TH, *ids, group.size)
    rows_CH, order = grouped_all_to_all(rows_TH, send_counts_R, receive_counts_R, capacity, group, order)
    return rows_CH, counts_G.reshape((group.size, -1)), positions_T, invalid, order
