"""rre_regroup of built-in MindSpore ops: one gather, whose indices are computed from the counts."""

import mindspore as ms
from mindspore import nn, ops


class MoveRowsPadded(nn.Cell):
    """rows → rows[source], where C names a row of zeros; the gradient is the same by the inverse."""

    def construct(self, rows_CH, source_C, destination_C):
        return ops.gather(_with_zero_row(rows_CH), source_C, 0)

    def bprop(self, rows_CH, source_C, destination_C, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), destination_C, 0), zeros(source_C), zeros(destination_C)


move_rows_padded = MoveRowsPadded()


def _with_zero_row(rows):
    return ops.concat((rows, ops.ZerosLike()(rows[:1])), 0)


def _source_of_rows(counts_AB, num_rows):
    """int32 [C]: which row of the input stands at each place of the output; C where none does."""
    num_sources, num_groups = counts_AB.shape
    ends_AB = ops.cumsum(counts_AB.reshape((-1,)), 0).reshape(counts_AB.shape)
    starts_N = ops.transpose(ends_AB - counts_AB, (1, 0)).reshape((-1,))
    counts_N = ops.transpose(counts_AB, (1, 0)).reshape((-1,))
    new_ends_N = ops.cumsum(counts_N, 0)
    rows_C = ops.cast(ops.arange(num_rows), ms.int32)
    reached_CN = ops.cast(ops.expand_dims(rows_C, 1) >= new_ends_N, ms.int32)
    reached_C = ops.cast(reached_CN.sum(1), ms.int32)
    block_C = ops.minimum(reached_C, num_sources * num_groups - 1)
    source_C = ops.gather(starts_N - new_ends_N + counts_N, block_C, 0) + rows_C
    source_C = ops.select(reached_C < num_sources * num_groups, source_C, ops.ones_like(source_C) * num_rows)
    return ops.clamp(source_C, 0, num_rows)


def rre_regroup(rows_CH, counts_AB):
    """See `ascend_ops.rre_regroup`."""
    source_C = _source_of_rows(counts_AB, rows_CH.shape[0])
    destination_C = _source_of_rows(ops.transpose(counts_AB, (1, 0)), rows_CH.shape[0])
    return move_rows_padded(rows_CH, source_C, destination_C)
