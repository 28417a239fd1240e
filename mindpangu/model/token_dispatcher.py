"""Token dispatchers: how the tokens of an RRE layer reach their experts, and how the results come back.

    dispatch(h, routing, order)        → rows sorted by expert, rows per expert, state, order
    combine(rows, state, x, order)     → x + the experts' results in token order, invalid, order

A model is built with one of two dispatchers: `LocalTokenDispatcher` if this rank holds all experts, or
`AllToAllTokenDispatcher` if the ranks of an exchange group share them. The blocks are the same for both.

`routing` assigns the tokens of a layer to experts:

    tokens_T, slot_ids_T    int32 [T], token id and domain slot of each token
    table_DV                int32 [D, V], the layer's routing tables
    num_experts             experts of a slot that this rank holds, a Python int
    capacity                rows that may arrive from all ranks, a Python int; only the all-to-all reads it
    counts                  (send_R, receive_R, arriving_RG), planned on the host, or () without an exchange:
                            int32 [R] rows sent to each rank, int32 [R] rows received from each rank, and int32 [R, G]
                            rows received from each rank for each (slot, expert of this rank)

`order` serialises the exchanges of a step, forward and backward: each exchange takes the token that the one before it
returned (`grouped_all_to_all`). `dispatch` returns it too, because the composed exchange sends counts before rows, and
the counts of the return trip depend on nothing else. `invalid` is int32 [1], the number of ids outside the table
(`rre_dispatch`).

`routing` and `state` are plain tuples on purpose. A NamedTuple or a dataclass that is built inside `@ms.jit` gives the
right loss, no error, and gradients that are all zero (tests/model/test_token_dispatcher.py).
"""

import mindspore as ms
from mindspore import nn, ops

from ascend_ops.grouped_all_to_all import Group, dispatch_all_to_all, grouped_all_to_all
from ascend_ops.rre_combine import rre_combine
from ascend_ops.rre_dispatch import rre_dispatch
from ascend_ops.rre_regroup import rre_regroup
from mindpangu.parallel.collectives import TensorGroup


class LocalTokenDispatcher(nn.Cell):
    """All experts are on this rank: rows are sorted by expert and sorted back. `order` passes through."""

    def __init__(self, tensor: TensorGroup):
        super().__init__(auto_prefix=False)
        self.tensor = tensor

    def dispatch(self, h_TH, routing, order):
        tokens_T, slot_ids_T, table_DV, num_experts, _, _ = routing
        rows_TH, counts_G, positions_T, invalid = rre_dispatch(
            self.tensor.copy_to(h_TH), tokens_T, slot_ids_T, table_DV, num_experts
        )
        return rows_TH, counts_G, (positions_T, invalid), order

    def combine(self, rows_TH, state, x_TH, order):
        positions_T, invalid = state
        rows_TH = self.tensor.reduce_from(rows_TH)
        return rre_combine(rows_TH, positions_T, x_TH), invalid, order


class AllToAllTokenDispatcher(nn.Cell):
    """The ranks of an exchange group share the experts: rows go to the rank of their expert and come back.

    The ranks of a tensor group have the same tokens. Each of them exchanges its columns of the rows, and the columns
    are gathered on the ranks of the experts, so every value crosses the network between nodes only once (PanGu-Σ). The
    partial results of the tensor group are reduce-scattered and return as columns.
    """

    def __init__(self, tensor: TensorGroup, exchange: Group):
        super().__init__(auto_prefix=False)
        self.tensor = tensor
        self.exchange = exchange

    def dispatch(self, h_TH, routing, order):
        tokens_T, slot_ids_T, table_DV, num_experts, capacity, counts = routing
        send_R, receive_R, arriving_RG = counts
        h_columns = self.tensor.scatter_to(h_TH)
        all_experts = num_experts * self.exchange.size
        columns, _, positions_T, invalid, order = dispatch_all_to_all(
            h_columns, tokens_T, slot_ids_T, table_DV, all_experts, send_R, receive_R, capacity, self.exchange, order
        )
        rows_CH = self.tensor.all_gather_last_dim(rre_regroup(columns, arriving_RG))
        counts_G = ops.cast(arriving_RG.sum(0), ms.int32)
        return rows_CH, counts_G, (positions_T, invalid, send_R, receive_R, arriving_RG), order

    def combine(self, rows_CH, state, x_TH, order):
        positions_T, invalid, send_R, receive_R, arriving_RG = state
        columns = self.tensor.reduce_scatter_last_dim(rows_CH)
        columns = rre_regroup(columns, ops.transpose(arriving_RG, (1, 0)))
        columns, order = grouped_all_to_all(columns, receive_R, send_R, x_TH.shape[0], self.exchange, order)
        x_TH = self.tensor.gather_from(rre_combine(columns, positions_T, self.tensor.scatter_to(x_TH)))
        return x_TH, invalid, order


def make_token_dispatcher(tensor: TensorGroup, exchange: Group | None) -> nn.Cell:
    """Returns the dispatcher of one layer.

    Args:
        tensor: the ranks that share the layer's matrices.
        exchange: the ranks that share the experts; None if this rank holds all of them.
    """
    return LocalTokenDispatcher(tensor) if exchange is None else AllToAllTokenDispatcher(tensor, exchange)
