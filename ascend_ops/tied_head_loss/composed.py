"""tied_head_loss by built-in MindSpore ops, with the scores of all tokens in memory."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

_score = ops.MatMul(transpose_b=True)  # made once, not in every call

FOREIGN = -1e9  # score of a row of another vocabulary


def token_losses(
    x_TH: Tensor,
    table_VH: Tensor,
    targets_BS: Tensor,
    vocabulary_of_sample_B: Tensor,
    starts: tuple[int, ...],
    vocabulary: int = -1,
) -> Tensor:
    """See `ascend_ops.tied_head_loss`."""
    logits_TV = scores(x_TH, table_VH, vocabulary_of_sample_B, starts, vocabulary)
    if vocabulary < 0:
        targets_BS = targets_BS + ops.expand_dims(ops.gather(_tensor(starts), vocabulary_of_sample_B, 0), 1)
    # MindSpore's log_softmax on a CPU is off by 1e-5 of a probability, and its fused cross entropy is ten times slower
    scores_TV = logits_TV - ops.stop_gradient(logits_TV.max(axis=1, keepdims=True))
    log_sums_T1 = ops.log(ops.exp(scores_TV).sum(1, keepdims=True))
    losses_T1 = log_sums_T1 - ops.gather_d(scores_TV, 1, targets_BS.reshape((-1, 1)))
    return losses_T1.reshape(targets_BS.shape)


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
    losses_BS = token_losses(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, starts, vocabulary) * weights_BS
    return losses_BS.sum(), ops.stop_gradient(losses_BS)


def scores(
    x_TH: Tensor, table_VH: Tensor, vocabulary_of_sample_B: Tensor, starts: tuple[int, ...], vocabulary: int = -1
) -> Tensor:
    """Computes the scores of the next token and returns them in at least fp32.

    Returns:
        [T, rows of the vocabulary]; for a mixed batch [T, V], with FOREIGN for the rows of other vocabularies.
    """
    if vocabulary >= 0 and len(starts) > 2:
        table_VH = table_VH[starts[vocabulary] : starts[vocabulary + 1]]
    logits_TV = _score(x_TH, table_VH)
    if logits_TV.dtype == ms.float16:
        logits_TV = ops.cast(logits_TV, ms.float32)
    if vocabulary >= 0 or len(starts) == 2:
        return logits_TV
    vocabulary_T = ops.repeat_elements(vocabulary_of_sample_B, x_TH.shape[0] // vocabulary_of_sample_B.shape[0], 0)
    foreign_TV = ops.expand_dims(vocabulary_T, 1) != _vocabulary_of_rows(starts)
    return ops.masked_fill(logits_TV, foreign_TV, FOREIGN)


@ops.constexpr
def _tensor(starts):
    return Tensor(np.array(starts, np.int32))


@ops.constexpr
def _vocabulary_of_rows(starts):
    return Tensor(np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts)))
