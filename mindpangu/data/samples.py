"""The samples of one split of a domain: windows of S + 1 tokens and, for records, a mask of the tokens that count.

Text is cut into overlapping samples (`packing.py`). Each instruction record is one sample (`instruction.py`), stored
with padding and a mask, so these samples do not overlap.
"""

import numpy.typing as npt

from mindpangu.data.packing import num_samples, sample_window

Sample = tuple[npt.NDArray, npt.NDArray | None]
"""(S + 1 tokens; bool or uint8 [S + 1], 1 where the token counts as a target, or None if only the rule of `packing`
applies)."""


class Samples:
    """Views into a stream of tokens.

    Args:
        tokens: integers [number of tokens].
        seq_length: S.
        counted: uint8 [number of tokens] for a stream of records of S + 1 tokens each; None for text.
    """

    def __init__(self, tokens: npt.NDArray, seq_length: int, counted: npt.NDArray | None = None) -> None:
        self._tokens = tokens
        self._seq_length = seq_length
        self._counted = counted

    def __len__(self) -> int:
        if self._counted is None:
            return num_samples(len(self._tokens), self._seq_length)
        return len(self._tokens) // (self._seq_length + 1)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._counted is None:
            return sample_window(self._tokens, index, self._seq_length), None
        window = slice(index * (self._seq_length + 1), (index + 1) * (self._seq_length + 1))
        return self._tokens[window], self._counted[window]
