"""Trains a lossless sentencepiece tokenizer: decoding returns exactly the text that was encoded.

It is a unigram model with byte fallback and no normalization. Whitespace-only pieces make code cheap (3.2 instead of
1.9 bytes per token). Without identity normalization no document of the corpus would round-trip.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from mindpangu.errors import TokenizerError
from mindpangu.files import write_bytes_atomically
from mindpangu.tokenizer.sentencepiece_tokenizer import END_OF_TEXT, Tokenizer

RESERVED_CONTROL_TOKENS = 64
"""Number of spare control tokens `<reserved_0>` …, for domains that are added later without a new vocabulary."""

_LONGEST_LINE = 1 << 16  # characters; longer lines are cut because sentencepiece would drop them

_SETTINGS: dict[str, Any] = {
    "model_type": "unigram",
    "character_coverage": 0.9995,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "user_defined_symbols": ["\n", "\t"],
    "unk_id": 0,
    "pad_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "unk_surface": "\ufffd",
    "max_sentence_length": 4 * _LONGEST_LINE,  # bytes
    "num_threads": 2,  # fixed: each thread sums its part, so another number of threads could change bits
    "minloglevel": 2,
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, control_tokens: Sequence[str], path: Path) -> Tokenizer:
    """Trains a tokenizer, writes its model to `path`, and returns it. The same text gives the same bytes.

    sentencepiece keeps all lines in memory, so pass a sample of a large corpus.
    Ids: 0 `<unk>`, 1 `<pad>`, then `control_tokens` in their order, the reserved ones, newline, tab, 256 bytes, pieces.

    Args:
        texts: the training text, in documents or parts of documents.
        vocab_size: number of ids, including all of the above.
        control_tokens: tokens that only the program can emit; `<eot>` must be one of them.
        path: the model file; its folder is created.

    Raises:
        TokenizerError: `<eot>` is not a control token, there is no text, or the vocabulary is too large or too small
            for the text.
        Exception: anything that iterating over `texts` raises, unchanged.
    """
    if END_OF_TEXT not in control_tokens:
        raise TokenizerError(f"control tokens {list(control_tokens)} lack {END_OF_TEXT}, which ends every document")
    reserved = [token for token in reserved_control_tokens() if token not in control_tokens]
    lines = _Lines(texts)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            control_symbols=[*control_tokens, *reserved],
            **_SETTINGS,
        )
    except RuntimeError as error:
        if lines.error is not None:
            raise lines.error from None
        if lines.count == 0:
            raise TokenizerError("there is no text to train a tokenizer on; check data.corpus") from None
        reason = str(error).rpartition("] ")[2].strip()
        raise TokenizerError(
            f"sentencepiece cannot train a tokenizer with model.vocab_size {vocab_size} on this text: {reason} "
            "Remedy: change model.vocab_size accordingly, or give more text."
        ) from None
    path = Path(path)
    write_bytes_atomically(path, model.getvalue())
    return Tokenizer(model.getvalue(), str(path))


def reserved_control_tokens() -> list[str]:
    """Returns the spare control tokens, in the order in which new domains take them."""
    return [f"<reserved_{index}>" for index in range(RESERVED_CONTROL_TOKENS)]


class _Lines:
    """Iterates over lines with their newlines. Keeps an exception of `texts`, which sentencepiece would stringify."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.splitlines(keepends=True):
                    for start in range(0, len(line), _LONGEST_LINE):
                        self.count += 1
                        yield line[start : start + _LONGEST_LINE]
        except Exception as error:
            self.error = error
            raise
