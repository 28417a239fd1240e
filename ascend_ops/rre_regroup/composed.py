"""rre_regroup by built-in MindSpore ops: one gather, with indices computed from the counts."""

import mindspore as ms
from mindspore import Tensor, nn, ops


class MoveRowsPadded(nn.Cell):
    """Gathers rows[source], where index C is a row of zeros; the gradient is a gather by the inverse permutation."""

    def construct(self, rows_CH, source_C, destination_C):
        return ops.gather(_with_zero_row(rows_CH), source_C, 0)

    def bprop(self, rows_CH, source_C, destination_C, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), destination_C, 0), zeros(source_C), zeros(destination_C)


move_rows_padded = MoveRowsPadded()


def _with_zero_row(rows):
    return ops.concat((rows, ops.ZerosLike()(rows[:1])), 0)


def _source_of_rows(counts_RG, num_rows):
    """Returns int32 [C]: the input row of each output position; C if there is none."""
    num_sources, num_groups = counts_RG.shape
    ends_RG = ops.cumsum(counts_RG.reshape((-1,)), 0).reshape(counts_RG.shape)
    starts_GR = ops.transpose(ends_RG - counts_RG, (1, 0)).reshape((-1,))
    counts_GR = ops.transpose(counts_RG, (1, 0)).reshape((-1,))
    new_ends_GR = ops.cumsum(counts_GR, 0)
    rows_C = ops.cast(ops.arange(num_rows), ms.int32)
    reached_CGR = ops.cast(ops.expand_dims(rows_C, 1) >= new_ends_GR, ms.int32)
    reached_C = ops.cast(reached_CGR.sum(1), ms.int32)
    block_C = ops.minimum(reached_C, num_sources * num_groups - 1)
    source_C = ops.gather(starts_GR - new_ends_GR + counts_GR, block_C, 0) + rows_C
    source_C = ops.select(reached_C < num_sources * num_groups, source_C, ops.ones_like(source_C) * num_rows)
    return ops.clamp(source_C, 0, num_rows)


def rre_regroup(rows_CH: Tensor, counts_RG: Tensor) -> Tensor:
    """See `ascend_ops.rre_regroup`."""
    source_C = _source_of_rows(counts_RG, rows_CH.shape[0])
    destination_C = _source_of_rows(ops.transpose(counts_RG, (1, 0)), rows_CH.shape[0])
    return move_rows_padded(rows_CH, source_C, destination_C)
