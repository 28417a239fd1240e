"""tied_head_loss: the head and its cross entropy in one operator; the scores of all tokens are never in memory."""

import itertools

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

MIXED = -1
"""Value of `vocabulary` if the samples have different vocabularies."""

implementation = backends.choose("tied_head_loss")


def token_losses(
    x_TH: Tensor,
    table_VH: Tensor,
    targets_BS: Tensor,
    vocabulary_of_sample_B: Tensor,
    starts: tuple[int, ...],
    vocabulary: int = MIXED,
) -> Tensor:
    """Computes −log p(target), with p = softmax(x · tableᵀ) over the rows of the sample's vocabulary.

    Args:
        x_TH: float [T, H], T = B·S.
        table_VH: float [V, H] of x_TH's dtype, for instance the word embedding.
        targets_BS: int32 [B, S], ids in the vocabulary of their sample.
        vocabulary_of_sample_B: int32 [B].
        starts: the first row of each vocabulary, in order, and V.
        vocabulary: the vocabulary of all samples, so that the composed form multiplies only by its rows; MIXED if they
            differ. The kernel finds the rows by itself.

    Returns:
        float32 (float64 for float64 rows) [B, S].

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.
        RuntimeError: the CPU kernel was given a target outside its vocabulary, or an unknown vocabulary.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to x_TH and table_VH.
    """
    dtypes = (x_TH.dtype, table_VH.dtype, targets_BS.dtype, vocabulary_of_sample_B.dtype)
    shapes = (x_TH.shape, table_VH.shape, targets_BS.shape, vocabulary_of_sample_B.shape)
    _check(dtypes, shapes, starts, vocabulary)
    return implementation.token_losses(x_TH, table_VH, targets_BS, vocabulary_of_sample_B, starts, vocabulary)


def weighted_losses(
    x_TH: Tensor,
    table_VH: Tensor,
    targets_BS: Tensor,
    vocabulary_of_sample_B: Tensor,
    weights_BS: Tensor,
    starts: tuple[int, ...],
    vocabulary: int = MIXED,
) -> tuple[Tensor, Tensor]:
    """Computes the `token_losses` times weights, and their sum, for training.

    The CPU kernel computes the gradients of the sum together with it, with three matrix products instead of the four
    that `token_losses` and its gradients take.

    Args:
        weights_BS: float32 (float64 for float64 rows) [B, S].

    Returns:
        The sum, a scalar; differentiable with respect to x_TH and table_VH.
        The weighted losses [B, S], through which no gradient flows.
    """
    dtypes = (x_TH.dtype, table_VH.dtype, targets_BS.dtype, vocabulary_of_sample_B.dtype, weights_BS.dtype)
    shapes = (x_TH.shape, table_VH.shape, targets_BS.shape, vocabulary_of_sample_B.shape, weights_BS.shape)
    _check(dtypes, shapes, starts, vocabulary)
    return implementation.weighted_losses(
        x_TH, table_VH, targets_BS, vocabulary_of_sample_B, weights_BS, starts, vocabulary
    )


@ops.constexpr
def _check(dtypes, shapes, starts, vocabulary):
    x, table, *integers = dtypes[:4]
    wide = ms.float64 if x == ms.float64 else ms.float32
    right = x in (ms.float16, ms.float32, ms.float64) and table == x and {*integers} == {ms.int32}
    if not right or {*dtypes[4:]} - {wide}:
        raise TypeError(
            "tied_head_loss: expected x_TH and table_VH of one dtype, float16, 32 or 64, int32 targets_BS and "
            "vocabulary_of_sample_B, and float32 weights_BS (float64 for float64 rows), "
            f"got {', '.join(map(str, dtypes))}"
        )
    x, table, targets, vocabularies, *weights = shapes
    right = len(x) == 2 and len(table) == 2 and x[1] == table[1] and len(targets) == 2
    if not right or x[0] != targets[0] * targets[1] or vocabularies != targets[:1] or {*weights} - {targets}:
        raise ValueError(
            "tied_head_loss: expected x_TH [B·S, H], table_VH [V, H], targets_BS and weights_BS [B, S], and "
            f"vocabulary_of_sample_B [B], got {', '.join(map(str, shapes))}"
        )
    rising = all(first < last for first, last in itertools.pairwise(starts))
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != table[0] or not rising:
        raise ValueError(f"tied_head_loss: starts are {starts}; expected 0, rising, up to the {table[0]} rows")
    if vocabulary not in range(MIXED, len(starts) - 1):
        raise ValueError(f"tied_head_loss: vocabulary is {vocabulary}; expected {MIXED} to {len(starts) - 2}")
