"""rre_dispatch by built-in MindSpore ops. It computes the position of every row by counting instead of sorting, so it
is stable."""

import mindspore as ms
from mindspore import Tensor, nn, ops


class MoveRows(nn.Cell):
    """Gathers rows[source]; the gradient is a gather by the inverse permutation instead of a scatter-add."""

    def construct(self, rows_TH, source_T, destination_T):
        return ops.gather(rows_TH, source_T, 0)

    def bprop(self, rows_TH, source_T, destination_T, out, dout):
        zeros = ops.ZerosLike()  # ops.zeros_like fails inside a bprop under jit
        return ops.gather(dout, destination_T, 0), zeros(source_T), zeros(destination_T)


move_rows = MoveRows()


def inverse_permutation(positions_T: Tensor) -> Tensor:
    """Returns source_T with source_T[positions_T[t]] = t."""
    indices = ops.cast(ops.arange(positions_T.shape[0]), ms.int32)
    return ops.tensor_scatter_update(ops.ZerosLike()(positions_T), ops.expand_dims(positions_T, 1), indices)


def look_up(
    token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the slot and the expert of every token, and how many ids were outside the table (they are clamped)."""
    num_slots, vocab_size = table_DV.shape
    tokens_T = ops.clamp(token_ids_T, 0, vocab_size - 1)
    slots_T = ops.clamp(slot_ids_T, 0, num_slots - 1)
    named_T = ops.gather(table_DV.reshape((-1,)), slots_T * vocab_size + tokens_T, 0)
    experts_T = ops.clamp(named_T, 0, num_experts - 1)
    wrong_T = ops.logical_or(tokens_T != token_ids_T, ops.logical_or(slots_T != slot_ids_T, experts_T != named_T))
    return slots_T, experts_T, ops.cast(ops.cast(wrong_T, ms.int32).sum(), ms.int32).reshape((1,))


def sort_rows(x_TH: Tensor, groups_T: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x's rows ordered by group, the number of rows of each group, and the position of each row."""
    member_TG = ops.cast(ops.expand_dims(groups_T, 1) == ops.arange(num_groups), ms.int32)
    seen_TG = ops.cumsum(member_TG, 0)
    counts_G = seen_TG[-1]
    start_G = ops.cumsum(counts_G, 0) - counts_G
    positions_T = ops.cast((member_TG * (seen_TG - 1 + start_G)).sum(1), ms.int32)
    rows_TH = move_rows(x_TH, inverse_permutation(positions_T), positions_T)
    return rows_TH, ops.cast(counts_G, ms.int32), positions_T


def rre_dispatch(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `ascend_ops.rre_dispatch`. Ids outside the table are clamped and counted."""
    slots_T, experts_T, invalid = look_up(token_ids_T, slot_ids_T, table_DV, num_experts)
    rows_TH, counts_G, positions_T = sort_rows(x_TH, slots_T * num_experts + experts_T, table_DV.shape[0] * num_experts)
    return rows_TH, counts_G, positions_T, invalid
