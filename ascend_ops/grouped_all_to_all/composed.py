"""grouped_all_to_all by built-in MindSpore ops.

AllReduce is the only collective that MindSpore compiles for sub-groups on the CPU, so it transports everything: each
rank writes its rows, its counts and the order token into its own slice of a buffer [R, …] of zeros, and the sum over
the ranks concatenates them. This takes R times the traffic of an exchange, but it runs anywhere. On Ascend, AllGather
does the same.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.rre_dispatch.composed import look_up, sort_rows


class Exchange(nn.Cell):
    """The exchange of one group, given the index of every row that it returns.

    It uses only primitives: functions of `ops` that branch cannot be compiled inside a bprop.
    """

    def __init__(self, name: str, rank: int, size: int, all_gather: bool = False):
        super().__init__()
        self.rank = rank
        self.size = size
        self.all_gather = ops.AllGather(group=name) if all_gather else None
        self.all_reduce = ops.AllReduce(group=name) if size > 1 and not all_gather else None
        self.concat = ops.Concat(0)
        self.gather = ops.Gather()
        self.sum = ops.ReduceSum()
        self.cast = ops.Cast()
        self.zeros = ops.ZerosLike()

    def construct(self, rows_QH, index_C, index_Q, order):
        return self.exchange(rows_QH, index_C, order)

    def bprop(self, rows_QH, index_C, index_Q, order, out, dout):
        # ordered after the backward of the next exchange (dout) and after this exchange itself (out)
        drows_QH, order = self.exchange(dout[0], index_Q, dout[1] + out[1])
        return drows_QH, self.zeros(index_C), self.zeros(index_Q), order

    def exchange(self, rows_QH, index_C, order):
        """Returns rows_CH and the order token.

        The index counts the rows of all ranks: r · (Q+1) + q is row q of rank r; the last row of each rank, q = Q, is
        the order token's zeros.
        """
        num_rows, hidden = rows_QH.shape
        # half precision is exact in float32, which every AllReduce can add
        dtype = ms.float64 if rows_QH.dtype == ms.float64 else ms.float32
        token = self.cast(_zeros(hidden) + order, dtype)
        rows = self.concat((self.cast(rows_QH, dtype), token))
        rows = self.all_ranks(rows)
        last = _range(self.size * (num_rows + 1))[-1:]
        out_CH = self.cast(self.gather(rows, index_C, 0), rows_QH.dtype)
        return out_CH, self.cast(self.sum(self.gather(rows, last, 0), 1), ms.float32)

    def all_counts(self, send_counts_R, order):
        """Returns int32 [R, R], the number of rows from rank (first axis) to rank. Runs after everything `order` waits
        for."""
        # float32 holds counts below 2²⁴ exactly
        counts = ops.expand_dims(ops.cast(send_counts_R, ms.float32) + ops.stop_gradient(order), 0)
        return ops.stop_gradient(ops.cast(self.all_ranks(counts), ms.int32))

    def all_ranks(self, rows):
        """Returns the rows of all ranks, one rank after the other."""
        if self.size == 1:
            return rows
        if self.all_gather is not None:
            return self.all_gather(rows)
        nothing = self.zeros(rows)
        return self.all_reduce(self.concat((nothing,) * self.rank + (rows,) + (nothing,) * (self.size - 1 - self.rank)))


@ops.constexpr
def _check_dtype(dtype, size):
    if dtype == ms.float64 and size > 1:
        raise TypeError("grouped_all_to_all: the composed form takes no float64, because AllReduce takes none")


@ops.constexpr
def _range(size):
    return Tensor(np.arange(size, dtype=np.int32))


@ops.constexpr
def _zeros(hidden):
    return Tensor(np.zeros((1, hidden), np.float32))


def _index(num_wanted, counts_R, starts_R, num_rows):
    """Returns int32 [num_wanted] for Exchange: counts_R rows from each rank, from row starts_R of its num_rows."""
    size = counts_R.shape[0]
    ends_R = ops.cumsum(counts_R, 0)
    wanted = _range(num_wanted)
    reached = ops.cast(ops.cast(ops.expand_dims(wanted, 1) >= ends_R, ms.int32).sum(1), ms.int32)
    source = ops.minimum(reached, size - 1)
    row = wanted - ops.gather(ends_R - counts_R, source, 0) + ops.gather(starts_R, source, 0)
    nothing = ops.ones_like(row) * (size * (num_rows + 1) - 1)
    return ops.select(reached < size, source * (num_rows + 1) + row, nothing)


def grouped_all_to_all(
    rows_QH: Tensor, send_counts_R: Tensor, receive_counts_R: Tensor, capacity: int, group: Any, order: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.grouped_all_to_all`."""
    _check_dtype(rows_QH.dtype, group.size)
    num_rows = rows_QH.shape[0]
    counts_RR = group.exchange.all_counts(send_counts_R, order)
    # the starts of this rank's rows in what the others send, and of its own rows in what they receive
    sent_R = (ops.cumsum(counts_RR, 1) - counts_RR)[:, group.rank]
    received_R = (ops.cumsum(counts_RR, 0) - counts_RR)[group.rank]
    index_C = _index(capacity, receive_counts_R, sent_R, num_rows)
    index_Q = _index(num_rows, send_counts_R, received_R, capacity)
    return group.exchange(rows_QH, index_C, index_Q, order)


def dispatch_to_ranks(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int, num_ranks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns rows_TH, counts_G, positions_T and invalid, in the order (rank, slot, expert of the rank)."""
    num_slots = table_DV.shape[0]
    local_experts = num_experts // num_ranks
    slots_T, experts_T, invalid = look_up(token_ids_T, slot_ids_T, table_DV, num_experts)
    ranks_T = ops.floor_div(experts_T, local_experts)
    local_T = ops.floor_mod(experts_T, local_experts)
    groups_T = (ranks_T * num_slots + slots_T) * local_experts + local_T
    rows_TH, counts_G, positions_T = sort_rows(x_TH, groups_T, num_slots * num_experts)
    return rows_TH, counts_G, positions_T, invalid


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
    """See `ascend_ops.grouped_all_to_all`. Ids outside the table are clamped and counted."""
    rows_TH, counts_G, positions_T, invalid = dispatch_to_ranks(
        x_TH, token_ids_T, slot_ids_T, table_DV, num_experts, group.size
    )
    rows_CH, order = grouped_all_to_all(rows_TH, send_counts_R, receive_counts_R, capacity, group, order)
    return rows_CH, counts_G.reshape((group.size, -1)), positions_T, invalid, order
