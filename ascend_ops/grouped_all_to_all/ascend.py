"""grouped_all_to_all by HCCL's AlltoAllV. The AscendC kernel puts rows in the order of sending, where it was built.

Unverified on hardware. Old versions of CANN return zeros from AlltoAllV without a word (seen by others on 910A): a
group is tested when it is joined, and one that fails exchanges by AllGather, with R times the traffic and a warning.
"""

import logging

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops import backends
from ascend_ops.ascend.operators import takes_rows
from ascend_ops.grouped_all_to_all import composed

_log = logging.getLogger("ascend_ops")


class AllToAll(nn.Cell):
    """The exchange of one group, of rows and counts as `grouped_all_to_all` takes them.

    Args:
        name: of HCCL's group.
        wide: HCCL's group has more ranks than exchange rows: of each of them, which rank of ours it is, or −1.
    """

    def __init__(self, name, wide=None):
        super().__init__()
        self.group = name
        self.count_of_rank = None
        if wide is not None:
            # those who get nothing read the zero behind the counts
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
        """The counts of all ranks of HCCL's group."""
        nothing = ops.ZerosLike()(ops.Slice()(counts_R, (0,), (1,)))
        return ops.Gather()(ops.Concat(0)((counts_R, nothing)), self.count_of_rank, 0)

    def exchange(self, rows, send_counts_R, receive_counts_R, zeros, order):
        """As many rows as `zeros` has: what arrives, then zeros; and the order token."""
        hidden = rows.shape[1]
        if self.count_of_rank is not None:
            send_counts_R, receive_counts_R = self.widened(send_counts_R), self.widened(receive_counts_R)
        sent = ops.Depend()(ops.Reshape()(rows, (-1,)), order)
        arrived = ops.AlltoAllV(group=self.group, block_size=hidden)(sent, send_counts_R, receive_counts_R)
        # how many arrive is not known when the graph is compiled; how many rows there are is
        filled = ops.Concat(0)((arrived, ops.Reshape()(zeros, (-1,))))
        out = ops.Reshape()(ops.Slice()(filled, (0,), (zeros.shape[0] * hidden,)), zeros.shape)
        return out, ops.Depend()(order, out)


def exchange_of_group(name, rank, size, around=None, whole_nodes=False, agree=bool):
    """What a `Group` of this name exchanges with: AlltoAllV where it works, AllGather or AllReduce where not.

    Args:
        around: (name, wide) of a group of whole nodes around this one, see `AllToAll`; None for none.
        whole_nodes: try that alone, not this group itself before.
        agree: whether any rank of all says so; all of them ask.
    """
    if size == 1 or ms.get_context("device_target") != "Ascend":
        return composed.Exchange(name, rank, size)
    for arguments in filter(None, (None if whole_nodes else (name,), around)):
        exchange = AllToAll(*arguments)
        problem = self_test(exchange, rank, size)
        if not agree(problem is not None):
            return exchange
        _log.warning("group %s: AlltoAllV %s", arguments[0], problem or "fails on another rank")
    _log.warning(
        "group %s: rows are exchanged by AllGather, which moves %d times as much; CANN 8.5 may help", name, size
    )
    return composed.Exchange(name, rank, size, all_gather=True)


def self_test(exchange, rank, size):
    """Sends rank r's row r · R + t to rank t, t + 1 times. Returns what is wrong with what arrives, or None."""
    send = np.arange(1, size + 1, dtype=np.int32)
    receive = np.full(size, rank + 1, np.int32)
    rows = np.repeat(rank * size + np.arange(size, dtype=np.float32) + 1, send)[:, None] * np.ones((1, 16), np.float32)
    wanted = np.repeat(np.arange(size, dtype=np.float32) * size + rank + 1, receive)
    try:
        out, _ = exchange(
            *map(Tensor, (rows, send, receive, np.zeros((len(wanted) + 1, 16), np.float32), np.zeros(1, np.float32)))
        )
        arrived = out.asnumpy()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"fails ({str(error).splitlines()[0]})"
    if not arrived.any():
        return "returns zeros"
    return (
        None
        if np.array_equal(arrived[:-1], np.broadcast_to(wanted[:, None], (len(wanted), 16)))
        else "returns wrong rows"
    )


_dispatch = backends.choose("rre_dispatch")
if not hasattr(_dispatch, "dispatch_to_ranks"):
    _dispatch = None  # not the AscendC kernel


@ops.constexpr
def _zeros(shape):
    return Tensor(np.zeros(shape, np.float32))


def grouped_all_to_all(rows_QH, send_counts_R, receive_counts_R, capacity, group, order):
    """See `ascend_ops.grouped_all_to_all`."""
    if not group.by_all_to_all:
        return composed.grouped_all_to_all(rows_QH, send_counts_R, receive_counts_R, capacity, group, order)
    zeros_CH = ops.cast(_zeros((capacity, rows_QH.shape[1])), rows_QH.dtype)
    return group.exchange(rows_QH, send_counts_R, receive_counts_R, zeros_CH, order)


def dispatch_all_to_all(
    x_TH, token_ids_T, slot_ids_T, table_DV, num_experts, send_counts_R, receive_counts_R, capacity, group, order
):
    """See `ascend_ops.grouped_all_to_all`."""
    ids = (token_ids_T, slot_ids_T, table_DV, num_experts)
    if _dispatch is not None and takes_rows(x_TH.shape, x_TH.dtype):
        rows_TH, counts_G, positions_T, invalid = _dispatch.dispatch_to_ranks(x_TH, *ids, group.size)
    else:
        rows_TH, counts_G, positions_T, invalid = composed.dispatch_to_ranks(x_TH, *ids, group.size)
    rows_CH, order = grouped_all_to_all(rows_TH, send_counts_R, receive_counts_R, capacity, group, order)
    return rows_CH, counts_G.reshape((group.size, -1)), positions_T, invalid, order
