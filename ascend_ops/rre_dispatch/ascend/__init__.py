"""rre_dispatch by the AscendC kernels in op_kernel/; rows that are not whole granules use the composed form."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.ascend.operators import INTS, SHORTS, custom_op, padded, takes_rows
from ascend_ops.rre_dispatch import composed

BARRIER = 64 * INTS  # a granule per core; no chip has more than 64

gather_rows = custom_op("rre_gather_rows", lambda rows, positions: rows, lambda rows, _: rows)


def _bprop(x_TH, token_ids_T, slot_ids_T, table_DV, layout_RE, out, dout):
    zeros = ops.ZerosLike()
    dx_TH = gather_rows(dout[0], out[2])
    return dx_TH, zeros(token_ids_T), zeros(slot_ids_T), zeros(table_DV), zeros(layout_RE)


def _out_shapes(x, token_ids, slot_ids, table, layout):
    num_groups = table[0] * layout[0] * layout[1]
    counts = -(-num_groups // INTS) * INTS
    return x, [counts], token_ids, [INTS], [BARRIER]


_forward = custom_op("rre_dispatch", _out_shapes, lambda x, *_: (x, ms.int32, ms.int32, ms.int32, ms.int32), _bprop)


@ops.constexpr
def _layout(num_ranks, experts_of_rank):
    """Returns a tensor from whose shape the operator reads the numbers of ranks and experts."""
    return Tensor(np.zeros((num_ranks, experts_of_rank), np.int32))


def dispatch_to_ranks(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int, num_ranks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns rows_TH, counts_G, positions_T and invalid, in the order (rank, slot, expert of the rank)."""
    num_tokens = x_TH.shape[0]
    num_groups = table_DV.shape[0] * num_experts
    # the table is padded with an invalid expert, so that ids beyond the vocabulary are counted; and the cast must not
    # turn an invalid expert into a valid one
    wrong_DV = ops.logical_or(table_DV < 0, table_DV > num_experts)
    table_DV = ops.select(wrong_DV, ops.ones_like(table_DV) * num_experts, table_DV)
    table_DV = ops.cast(padded(table_DV, SHORTS, num_experts), ms.uint16)
    rows_TH, counts_G, positions_T, invalid, _ = _forward(
        x_TH,
        padded(token_ids_T, INTS),
        padded(slot_ids_T, INTS),
        table_DV,
        _layout(num_ranks, num_experts // num_ranks),
    )
    return rows_TH, counts_G[:num_groups], positions_T[:num_tokens], invalid[:1]


def rre_dispatch(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `ascend_ops.rre_dispatch`."""
    if not takes_rows(x_TH.shape, x_TH.dtype):
        return composed.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)
    return dispatch_to_ranks(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts, 1)
