"""The word embedding and the head, which may share a table.

A tensor group divides the rows of every vocabulary. A lookup then finds its row on one rank and zeros on the others. Of
the other ranks' scores, the loss needs only three numbers per token: the maximum, the sum of exponentials, and the
score of the target.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ascend_ops import tied_head_loss
from ascend_ops.tied_head_loss import composed
from mindpangu.model.layers import Init
from mindpangu.model.precision import cast
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.parallel.sharding import vocabulary_slice


class WordEmbedding(nn.Cell):
    """The embedding table. Its Parameter `table` holds this rank's rows."""

    def __init__(self, init: Init, vocabularies: Vocabularies):
        super().__init__(auto_prefix=False)
        self.table, self.local_row_V, _ = _local_table(init, vocabularies, "word_embedding")
        self.tensor = init.tensor

    def construct(self, rows_BS):
        """Looks up rows of the whole table. Returns float32 [B, S, H]."""
        if self.local_row_V is None:
            return ops.gather(self.table, rows_BS, 0)
        local_BS = ops.gather(self.local_row_V, rows_BS, 0)
        found_BSH = ops.gather(self.table, ops.maximum(local_BS, 0), 0)
        here_BS1 = ops.expand_dims(ops.cast(local_BS >= 0, ms.float32), 2)
        return self.tensor.reduce_from(found_BSH * here_BS1)


class Head(nn.Cell):
    """The scores of the next token. Its Parameter `table` is that of the embedding if they are tied."""

    def __init__(self, init: Init, vocabularies: Vocabularies, embedding: WordEmbedding):
        super().__init__(auto_prefix=False)
        self.table, self.local_row_V, sizes = _local_table(init, vocabularies, "head.weight", embedding)
        self.tensor = init.tensor
        self.compute_dtype = init.compute_dtype
        self.local_starts = tuple(int(start) for start in np.cumsum((0, *sizes)))
        self.starts = Tensor(np.array(vocabularies.starts, np.int32))

    def logits(self, x_TH, vocabulary, vocabulary_of_sample_B):
        """Returns the scores of the next token over this rank's rows, float32.

        Args:
            vocabulary: vocabulary of the whole batch, a Python int; the head then multiplies only by its rows. -1 for a
                batch that mixes vocabularies: the head scores all rows, with -1e9 for the rows of other vocabularies.
            vocabulary_of_sample_B: int32 [B], vocabulary of each sample; used only for a mixed batch.
        """
        x_TH = self.tensor.copy_to(x_TH)
        return composed.scores(x_TH, self._rows(), vocabulary_of_sample_B, self.local_starts, vocabulary)

    def token_losses(self, x_TH, targets_BS, vocabulary, vocabulary_of_sample_B):
        """Returns float32 [B, S]: −log p of each target. Targets are ids in the vocabulary of their sample."""
        if self.local_row_V is not None:
            logits_TV = self.logits(x_TH, vocabulary, vocabulary_of_sample_B)
            return self._sharded_losses(logits_TV, targets_BS, vocabulary, vocabulary_of_sample_B)
        return tied_head_loss.token_losses(
            x_TH, self._rows(), targets_BS, vocabulary_of_sample_B, self.local_starts, vocabulary
        )

    def weighted_losses(self, x_TH, targets_BS, weights_BS, vocabulary, vocabulary_of_sample_B):
        """Returns the sum of the weighted losses, and the weighted losses [B, S], which have no gradient."""
        if self.local_row_V is not None:
            losses_BS = self.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B) * weights_BS
            return losses_BS.sum(), ops.stop_gradient(losses_BS)
        return tied_head_loss.weighted_losses(
            x_TH, self._rows(), targets_BS, vocabulary_of_sample_B, weights_BS, self.local_starts, vocabulary
        )

    def _sharded_losses(self, logits_TV, targets_BS, vocabulary, vocabulary_of_sample_B):
        """Computes log Σ exp(logit) − logit of the target from the scores of all ranks."""
        max_T1 = ops.stop_gradient(self.tensor.maximum(logits_TV.max(axis=1, keepdims=True)))
        sum_T1 = self.tensor.reduce_from(ops.exp(logits_TV - max_T1).sum(1, keepdims=True))
        rows_BS = targets_BS + self._starts(vocabulary_of_sample_B)
        column_T1 = ops.gather(self.local_row_V, rows_BS, 0).reshape((-1, 1))
        here_T1 = column_T1 >= 0
        if vocabulary >= 0:
            column_T1 = column_T1 - self.local_starts[vocabulary]
        column_T1 = ops.select(here_T1, column_T1, ops.zeros_like(column_T1))
        found_T1 = ops.gather_d(logits_TV, 1, column_T1) * ops.cast(here_T1, ms.float32)
        target_T1 = self.tensor.reduce_from(found_T1)
        return (ops.log(sum_T1) + max_T1 - target_T1).reshape(targets_BS.shape)

    def _starts(self, vocabulary_of_sample_B):
        return ops.expand_dims(ops.gather(self.starts, vocabulary_of_sample_B, 0), 1)

    def _rows(self):
        return cast(self.table, self.compute_dtype)


def _local_table(
    init: Init, vocabularies: Vocabularies, name: str, tied_to: WordEmbedding | None = None
) -> tuple[Parameter, Tensor | None, Sequence[int]]:
    """Creates this rank's rows of an embedding table.

    Returns:
        The Parameter with the rows.
        int32 [V], the local index of each row of the whole table, -1 for rows of other ranks; None if all are local.
        The number of local rows of each vocabulary.
    """
    tensor = init.tensor
    hidden = init.config.model.hidden_size
    held = vocabulary_slice(vocabularies.starts, vocabularies.sizes, hidden, tensor.rank, tensor.size)
    sizes = [stop - start for start, stop in held.ranges[0][1]] if held.ranges else vocabularies.sizes
    if tied_to is not None and init.config.model.tied_head:
        return tied_to.table, tied_to.local_row_V, sizes
    table = init.weight(name, vocabularies.num_rows, hidden, held=held)
    if tensor.size == 1:
        return table, None, sizes
    local_row_V = np.full(vocabularies.num_rows, -1, np.int32)
    rows = np.concatenate([np.arange(start, stop) for start, stop in held.ranges[0][1]])
    local_row_V[rows] = np.arange(len(rows))
    return table, Tensor(local_row_V), sizes
