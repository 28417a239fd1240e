"""Selects the pieces of a compact tokenizer: the most frequent ones of a larger tokenizer.

arXiv 2402.02791, section on the tokenizer: most pieces of a large vocabulary are rare, and each costs a row of the
embedding that a small model cannot afford. Pieces are only removed; nothing is trained.
"""

from collections.abc import Collection

import numpy as np

from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import PieceDependencies


class PieceSelector:
    """Selects the pieces that a compact tokenizer of a given size keeps.

    Attributes:
        source: the large tokenizer.
        min_size: the smallest possible size, the number of pieces that are always kept.
    """

    def __init__(self, source: Tokenizer):
        self.source = source
        self._vocabulary = PieceDependencies(source)
        self.min_size = len(self._vocabulary.always)

    def select(self, size: int, counts_V: np.ndarray) -> frozenset[int]:
        """Returns the ids of the `size` pieces to keep: those that are always kept, then the most frequent ones.

        Ties go to the lower id. In a BPE model a piece brings its merge path, which counts towards the size. A piece
        that no longer fits is skipped, so the last ones may be less frequent pieces with shorter paths.

        Args:
            counts_V: int64 [V], number of occurrences of each id of the large tokenizer.

        Raises:
            TokenizerError: see `require_size`.
        """
        self.require_size(size)
        kept = set(self._vocabulary.always)
        for index in np.argsort(-counts_V, kind="stable").tolist():
            if len(kept) == size:
                break
            missing = self._vocabulary.needs(index) - kept
            if len(missing) <= size - len(kept):
                kept |= missing
        return frozenset(kept)

    def require_size(self, size: int) -> None:
        """Raises TokenizerError if the size is too small, or not smaller than the large tokenizer."""
        if size < self.min_size:
            raise TokenizerError(
                f"a tokenizer of {size:,} pieces is too small: {self.min_size:,} of the {self.source.vocab_size:,} "
                "are always kept (control tokens, bytes, user-defined symbols, the space, and what these need); "
                f"ask for {self.min_size:,} or more"
            )
        if size >= self.source.vocab_size:
            raise TokenizerError(
                f"a tokenizer of {size:,} pieces would not be smaller: the given one has {self.source.vocab_size:,}; "
                "ask for fewer"
            )

    def tokenizer(self, kept: frozenset[int]) -> Tokenizer:
        """Returns the tokenizer of the kept pieces, in their old order."""
        return self._vocabulary.compacted(kept)[0]

    def default_sizes(self) -> list[int]:
        """Returns the possible sizes among 1000, 2000, 4000 …, to compare."""
        sizes = [1000 << power for power in range(14)]
        return [size for size in sizes if self.min_size <= size < self.source.vocab_size]


def coverage(kept: Collection[int], counts_V: np.ndarray) -> float:
    """Returns the share of the large tokenizer's tokens whose piece is kept.

    With the counts of the training text, this is the prediction for other text.

    Args:
        kept: ids of the kept pieces.
        counts_V: int64 [V], number of occurrences of each id.
    """
    total = int(counts_V.sum())
    return int(counts_V[list(kept)].sum()) / total if total else 1.0
