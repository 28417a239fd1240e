"""Measures tokenizers on held-out text: the number of tokens, and the characters that no piece spells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import available_cores, read_batches
from mindpangu.tokenizer import Tokenizer


@dataclass
class Usage:
    """How a tokenizer encodes a text.

    Attributes:
        tokens: number of tokens, without control tokens.
        num_bytes, characters: size of the text in UTF-8 bytes and in characters.
        as_bytes: number of characters, after the tokenizer's normalization, that are encoded as byte tokens.
        unknown: number of characters, after normalization, that are encoded as the unknown token.
    """

    tokens: int = 0
    num_bytes: int = 0
    characters: int = 0
    as_bytes: int = 0
    unknown: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Mean number of UTF-8 bytes per token."""
        return self.num_bytes / max(self.tokens, 1)


def measure_usage(documents: Documents, split: Split, tokenizers: Sequence[Tokenizer]) -> list[Usage]:
    """Tokenizes the held-out documents with each tokenizer, streaming, with a progress bar on a terminal.

    Raises:
        DataError: the text cannot be read.
    """
    usages = [Usage() for _ in tokenizers]
    leading_bytes = [_is_leading_byte(tokenizer) for tokenizer in tokenizers]
    with read_batches(documents, "held-out text") as batches:
        for batch in batches:
            texts = [text for document in batch if split.is_heldout(document) for text in document.texts]
            for tokenizer, usage, leading_byte_V in zip(tokenizers, usages, leading_bytes, strict=True):
                encoded = tokenizer.encode_batch(texts, available_cores())
                usage.tokens += sum(map(len, encoded))
                usage.num_bytes += sum(len(text.encode("utf-8")) for text in texts)
                usage.characters += sum(map(len, texts))
                usage.as_bytes += sum(int(leading_byte_V[ids].sum()) for ids in encoded)
                usage.unknown += tokenizer.count_unknown_characters(texts, encoded)
    return usages


def _is_leading_byte(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bool [V]: True for byte tokens that begin a character. Continuation bytes of UTF-8 are 10xxxxxx."""
    values = [tokenizer.byte(index) for index in range(tokenizer.vocab_size)]
    return np.array([value is not None and value & 0xC0 != 0x80 for value in values])
