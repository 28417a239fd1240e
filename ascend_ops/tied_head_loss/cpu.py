"""tied_head_loss by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.tied_head_loss import composed

_weighted = custom_op(
    "tied_head_loss",
    "weighted_losses",
    lambda x, table, targets, *_: ((1,), targets, x, table),
    lambda x, *_: (x, x, x, x),
)


def _bprop(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, row_starts, out, dout):
    found = _weighted(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, row_starts, dout)
    zeros = ops.ZerosLike()
    return found[2], found[3], zeros(targets_BS), zeros(vocabulary_of_sample_B), zeros(row_starts)


_token_losses = custom_op(
    "tied_head_loss", "token_losses", lambda x, table, targets, *_: targets, lambda x, *_: x, _bprop
)


class _WeightedLosses(nn.Cell):
    """The weighted losses and the gradients of their sum, which the backward pass only scales."""

    def construct(self, x_TH, table_VH, targets_BS, vocabulary_of_sample_B, row_starts, weights_BS):
        return _weighted(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, row_starts, weights_BS)

    def bprop(self, x_TH, table_VH, targets_BS, vocabulary_of_sample_B, row_starts, weights_BS, out, dout):
        zeros = ops.ZerosLike()
        others = (zeros(targets_BS), zeros(vocabulary_of_sample_B), zeros(row_starts), zeros(weights_BS))
        return (out[2] * dout[0], out[3] * dout[0], *others)


_weighted_losses = _WeightedLosses()


def token_losses(
    x_TH: Tensor,
    table_VH: Tensor,
    targets_BS: Tensor,
    vocabulary_of_sample_B: Tensor,
    starts: tuple[int, ...],
    vocabulary: int = -1,
) -> Tensor:
    """See `ascend_ops.tied_head_loss`."""
    if x_TH.dtype != ms.float32:
        return composed.token_losses(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, starts, vocabulary)
    return _token_losses(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, _tensor(starts))


def weighted_losses(
    x_TH: Tensor,
    table_VH: Tensor,
    targets_BS: Tensor,
    vocabulary_of_sample_B: Tensor,
    weights_BS: Tensor,
    starts: tuple[int, ...],
    vocabulary: int = -1,
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.tied_head_loss`."""
    if x_TH.dtype != ms.float32:
        return composed.weighted_losses(
            x_TH, table_VH, targets_BS, vocabulary_of_sample_B, weights_BS, starts, vocabulary
        )
    found = _weighted_losses(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, _tensor(starts), weights_BS)
    return found[0][0], found[1]


@ops.constexpr
def _tensor(starts):
    return Tensor(starts, ms.int32)
