"""rre_dispatch of built-in MindSpore ops. No sort: the place of a row is counted, which also keeps it stable."""

import mindspore as ms
from mindspore import nn, ops


class MoveRows(nn.Cell):
    """rows → rows[source], whose gradient is a gather by the inverse permutation instead of a scatter-add."""

    def construct(self, rows_TH, source_T, destination_T):
        return ops.gather(rows_TH, source_T, 0)

    def bprop(self, rows_TH, source_T, destination_T, out, dout):
        zeros = ops.ZerosLike()  # ops.zeros_like fails inside a bprop under jit
        return ops.gather(dout, destination_T, 0), zeros(source_T), zeros(destination_T)


move_rows = MoveRows()


def inverse_permutation(positions_T):
    """source_T with source_T[positions_T[t]] = t."""
    indices = ops.cast(ops.arange(positions_T.shape[0]), ms.int32)
    return ops.tensor_scatter_update(ops.ZerosLike()(positions_T), ops.expand_dims(positions_T, 1), indices)


def rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts):
    """Sorts rows by the expert that a fixed table names for each token (PanGu-Σ's RRE: no gate, nothing learned).

    Args:
        x_TH: float [T, H], one row a token.
        token_ids_T: int32 [T], token ids, below V.
        slot_ids_T: int32 [T], which domain slot each token belongs to, below D.
        table_DV: int32 [D, V], the expert of a token inside its slot's group, below num_experts.
        num_experts: E, experts of a slot.

    Returns:
        rows_TH: x's rows ordered by group (slot · E + expert), in token order inside a group.
        counts_G: int32 [D·E], rows of each group.
        positions_T: int32 [T], where each token's row went.

    Ids are checked on the host, where the plan is made; here an id outside the table is clamped into it.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to x_TH.
    """
    num_slots, vocab_size = table_DV.shape
    if x_TH.ndim != 2 or token_ids_T.shape != (x_TH.shape[0],) or slot_ids_T.shape != (x_TH.shape[0],):
        raise ValueError("rre_dispatch: expected x_TH [T, H] with token_ids_T and slot_ids_T both [T]")
    tokens_T = ops.clamp(token_ids_T, 0, vocab_size - 1)
    experts_T = ops.gather(table_DV.reshape((-1,)), slot_ids_T * vocab_size + tokens_T, 0)
    groups_T = slot_ids_T * num_experts + experts_T
    member_TG = ops.cast(ops.expand_dims(groups_T, 1) == ops.arange(num_slots * num_experts), ms.int32)
    seen_TG = ops.cumsum(member_TG, 0)
    counts_G = seen_TG[-1]
    start_G = ops.cumsum(counts_G, 0) - counts_G
    positions_T = (member_TG * (seen_TG - 1 + start_G)).sum(1)
    positions_T = ops.cast(positions_T, ms.int32)
    rows_TH = move_rows(x_TH, inverse_permutation(positions_T), positions_T)
    return rows_TH, ops.cast(counts_G, ms.int32), positions_T
