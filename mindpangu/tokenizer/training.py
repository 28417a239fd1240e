"""Trains a lossless sentencepiece tokenizer: decoding returns exactly the text that was encoded.

It is a unigram model with byte fallback and no normalization. Whitespace-only pieces make code cheap (3.2 instead of
1.9 bytes per token). Without identity normalization no document of the corpus would round-trip.

sentencepiece silently skips lines that are too long and lines with U+2585, its own mark for unknown characters.
Therefore, long lines are cut here, and lines are split at U+2585: only this character is left out, counted, and
reported.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from mindpangu.errors import TokenizerError
from mindpangu.files import write_bytes_atomically
from mindpangu.tokenizer.sentencepiece_tokenizer import END_OF_TEXT, Tokenizer, require_unicode

RESERVED_CONTROL_TOKENS = 64
"""Number of spare control tokens `<reserved_0>` …, for domains that are added later without a new vocabulary."""

_LONGEST_LINE = 1 << 16  # characters
_UNKNOWN_MARK = "\u2585"

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


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    control_tokens: Sequence[str],
    path: Path,
    log: Callable[[str], None] = print,
) -> Tokenizer:
    """Trains a tokenizer, writes its model to `path`, and returns it. The same text gives the same bytes.

    sentencepiece keeps all lines in memory, so pass a sample of a large corpus.
    Ids: 0 `<unk>`, 1 `<pad>`, then `control_tokens` in their order, the reserved ones, newline, tab, 256 bytes, pieces.

    Args:
        texts: the training text, in documents or parts of documents.
        vocab_size: number of ids, including all of the above.
        control_tokens: tokens that only the program can emit; `<eot>` must be one of them.
        path: the model file; its folder is created.
        log: receives a message if some of the text is left out.

    Raises:
        TokenizerError: `<eot>` is not a control token, there is no text, the text is not valid Unicode, or the
            vocabulary is too large or too small for it.
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
    except (RuntimeError, ValueError) as error:
        if lines.error is not None:
            raise lines.error from None
        raise TokenizerError(_describe_failure(str(error), lines, vocab_size)) from None
    if lines.left_out:
        log(
            f"tokenizer: left out {lines.left_out:,} × {_UNKNOWN_MARK} (U+2585), which sentencepiece reserves for "
            "itself; the text around it is used, and the tokenizer spells it in bytes"
        )
    path = Path(path)
    write_bytes_atomically(path, model.getvalue())
    return Tokenizer(model.getvalue(), str(path))


def reserved_control_tokens() -> list[str]:
    """Returns the spare control tokens, in the order in which new domains take them."""
    return [f"<reserved_{index}>" for index in range(RESERVED_CONTROL_TOKENS)]


def _describe_failure(message: str, lines: "_Lines", vocab_size: int) -> str:
    """Rewrites an error message of sentencepiece for the user, with a remedy."""
    if lines.count == 0 and not lines.left_out:
        return "there is no text to train a tokenizer on; check data.corpus"
    start = f"sentencepiece cannot train a tokenizer with model.vocab_size {vocab_size} on this text: "
    if found := re.search(r"Vocabulary size too high .* <= (\d+)", message):
        return f"{start}it yields {found[1]} pieces. Set model.vocab_size to {found[1]} or less, or give more text"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"{start}its characters alone need {found[1]} pieces. Set model.vocab_size to {found[1]} or more"
    if re.search(r"(sentences_|required_chars_)\.empty\(\)|all_chars_count", message):
        return (
            "there is no text to train a tokenizer on: all of it is blank lines, control characters, or "
            f"{_UNKNOWN_MARK} (U+2585), which sentencepiece reserves for itself; add text to data.corpus"
        )
    reason = message.rpartition("] ")[2].strip() or message
    return f"{start}{reason.rstrip('.')}. Change model.vocab_size, or give other text"


class _Lines:
    """Iterates over the lines of texts, cut and split for sentencepiece, with their newlines.

    Attributes:
        count: number of lines so far.
        left_out: number of characters left out so far.
        error: the exception that iterating over the texts raised, if any; sentencepiece would only keep its message.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.left_out = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                require_unicode(text)
                for line in text.splitlines(keepends=True):
                    for part in line.split(_UNKNOWN_MARK):
                        for start in range(0, len(part), _LONGEST_LINE):
                            self.count += 1
                            yield part[start : start + _LONGEST_LINE]
                    self.left_out += line.count(_UNKNOWN_MARK)
        except Exception as error:
            self.error = error
            raise
