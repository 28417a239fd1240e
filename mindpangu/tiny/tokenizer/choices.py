"""A compact tokenizer: the most frequent pieces of a larger one, and what is predicted of it.

arXiv 2402.02791, section on the tokenizer: most pieces of a large vocabulary are rare, and each costs a row of the
embedding, which a small model cannot spare. Pieces are removed; nothing is trained.
"""

from collections.abc import Collection

import numpy as np

from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import PieceDependencies


class Choices:
    """Which pieces stay, for any size.

    Attributes:
        source: the large tokenizer.
        least: the smallest size; the pieces that stay in any case.
    """

    def __init__(self, source: Tokenizer):
        self.source = source
        self._vocabulary = PieceDependencies(source)
        self.least = len(self._vocabulary.always)

    def of_size(self, size: int, counts_V: np.ndarray) -> frozenset[int]:
        """Ids of the pieces that stay, `size` of them: those that always stay, then the most frequent, ties by id.

        In a BPE model a piece comes with its merge path, which counts. One that no longer fits is passed over, so the
        last places go to less frequent pieces that need fewer.

        Args:
            counts_V: int64 [V], how often each id of the large tokenizer occurs.

        Raises:
            TokenizerError: as `require`.
        """
        self.require(size)
        kept = set(self._vocabulary.always)
        for index in np.argsort(-counts_V, kind="stable").tolist():
            if len(kept) == size:
                break
            missing = self._vocabulary.needs(index) - kept
            if len(missing) <= size - len(kept):
                kept |= missing
        return frozenset(kept)

    def require(self, size: int) -> None:
        """Raises TokenizerError for a size that is too small, or not smaller than the tokenizer."""
        if size < self.least:
            raise TokenizerError(
                f"a tokenizer of {size:,} pieces is too small: {self.least:,} of the {self.source.vocab_size:,} "
                "always stay (control tokens, bytes, user-defined symbols, the blank, and what these need); "
                f"ask for {self.least:,} or more"
            )
        if size >= self.source.vocab_size:
            raise TokenizerError(
                f"a tokenizer of {size:,} pieces is asked for, but the one that is given has "
                f"{self.source.vocab_size:,}; ask for fewer"
            )

    def tokenizer(self, kept: frozenset[int]) -> Tokenizer:
        """The tokenizer of the pieces that stay, in their old order."""
        return self._vocabulary.compacted(kept)[0]

    def usual_sizes(self) -> list[int]:
        """Sizes for a curve: 1000, 2000, 4000 … as far as they can be had."""
        return [size for size in (1000 << power for power in range(14)) if self.least <= size < self.source.vocab_size]


def coverage(kept: Collection[int], counts_V: np.ndarray) -> float:
    """The share of tokens, of the large tokenizer, whose piece stays. Counts of training text give the prediction.

    Args:
        counts_V: int64 [V], how often each id occurs.
    """
    total = int(counts_V.sum())
    return int(counts_V[list(kept)].sum()) / total if total else 1.0
