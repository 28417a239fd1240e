"""NumPy reference of tied_head_loss, forward and backward: one token after the other."""

from collections.abc import Sequence

import numpy as np


def token_losses(
    x_TH: np.ndarray,
    table_VH: np.ndarray,
    targets_BS: np.ndarray,
    vocabulary_of_sample_B: np.ndarray,
    starts: Sequence[int],
) -> np.ndarray:
    """See `ascend_ops.tied_head_loss`; takes any float dtype."""
    losses_T = np.empty(len(x_TH), x_TH.dtype)
    for token, (x_H, target) in enumerate(zip(x_TH, targets_BS.reshape(-1), strict=True)):
        first, last = _rows(token, targets_BS, vocabulary_of_sample_B, starts)
        logits = table_VH[first:last] @ x_H
        highest = logits.max()
        losses_T[token] = np.log(np.exp(logits - highest).sum()) + highest - logits[target]
    return losses_T.reshape(targets_BS.shape)


def weighted_losses_backward(
    x_TH: np.ndarray,
    table_VH: np.ndarray,
    targets_BS: np.ndarray,
    vocabulary_of_sample_B: np.ndarray,
    weights_BS: np.ndarray,
    starts: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients of the sum of the weighted losses with respect to (x_TH, table_VH)."""
    dx_TH = np.empty_like(x_TH)
    dtable_VH = np.zeros_like(table_VH)
    for token, (x_H, target, weight) in enumerate(
        zip(x_TH, targets_BS.reshape(-1), weights_BS.reshape(-1), strict=True)
    ):
        first, last = _rows(token, targets_BS, vocabulary_of_sample_B, starts)
        logits = table_VH[first:last] @ x_H
        dlogits = np.exp(logits - logits.max())
        dlogits /= dlogits.sum()
        dlogits[target] -= 1
        dlogits *= weight
        dx_TH[token] = dlogits @ table_VH[first:last]
        dtable_VH[first:last] += np.outer(dlogits, x_H)
    return dx_TH, dtable_VH


def _rows(
    token: int, targets_BS: np.ndarray, vocabulary_of_sample_B: np.ndarray, starts: Sequence[int]
) -> tuple[int, int]:
    """Returns the rows of the table that belong to a token's vocabulary, as (first, end)."""
    vocabulary = vocabulary_of_sample_B[token // targets_BS.shape[1]]
    return starts[vocabulary], starts[vocabulary + 1]
