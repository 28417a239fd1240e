"""What tokenizers make of held-out text: how many tokens, and what they cannot spell with pieces."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.tiny.tokenizer.documents import Documents, Split
from mindpangu.tiny.tokenizer.piece_counts import available_cores, reading
from mindpangu.tokenizer import Tokenizer


@dataclass
class Usage:
    """A tokenizer on a text.

    Attributes:
        tokens: of the text; control tokens are none of it.
        num_bytes, characters: of the text, in UTF-8.
        as_bytes, unknown: characters, as the tokenizer normalizes them, that became byte tokens, or the unknown token.
    """

    tokens: int = 0
    num_bytes: int = 0
    characters: int = 0
    as_bytes: int = 0
    unknown: int = 0

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(self.tokens, 1)


def measure(documents: Documents, split: Split, tokenizers: Sequence[Tokenizer]) -> list[Usage]:
    """Tokenizes the held-out documents, streaming, with a progress bar on a terminal: once with each tokenizer.

    Raises:
        DataError: text that cannot be read.
    """
    usages = [Usage() for _ in tokenizers]
    first_bytes = [_first_bytes(tokenizer) for tokenizer in tokenizers]
    with reading(documents, "held-out text") as read:
        for batch in read:
            texts = [text for document in batch if split.holds_out(document) for text in document.texts]
            for tokenizer, usage, first_bytes_V in zip(tokenizers, usages, first_bytes, strict=True):
                encoded = tokenizer.encode_batch(texts, available_cores())
                usage.tokens += sum(map(len, encoded))
                usage.num_bytes += sum(len(text.encode("utf-8")) for text in texts)
                usage.characters += sum(map(len, texts))
                usage.as_bytes += sum(int(first_bytes_V[ids].sum()) for ids in encoded)
                usage.unknown += tokenizer.count_unknown_characters(texts, encoded)
    return usages


def _first_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]: ids of bytes that begin a character; in UTF-8 those that go on with one are 10xxxxxx."""
    values = [tokenizer.byte(index) for index in range(tokenizer.vocab_size)]
    return np.array([value is not None and value & 0xC0 != 0x80 for value in values])
