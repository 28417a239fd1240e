"""Training a sentencepiece tokenizer that loses nothing: what `Tokenizer` decodes is what was encoded.

The settings are a unigram model with byte fallback and no normalization. Whitespace-only pieces are what makes code
cheap (3.2 instead of 1.9 bytes a token); without identity normalization no document of the corpus round-trips.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from mindpangu.errors import TokenizerError
from mindpangu.files import write_bytes_atomically
from mindpangu.tokenizer.sentencepiece_tokenizer import END_OF_TEXT, Tokenizer

RESERVED_CONTROL_TOKENS = 64
"""Spare control tokens `<reserved_0>` …: a domain that is added later gets one, without a new vocabulary."""

_LONGEST_LINE = 1 << 16  # characters; sentencepiece drops longer sentences than its limit, so they are cut instead

_SETTINGS = {
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
    "num_threads": 2,  # fixed: partial sums are taken per thread, so another number could give other bits
    "minloglevel": 2,
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, control_tokens: Sequence[str], path: Path) -> Tokenizer:
    """Trains a tokenizer, writes its model to `path` and returns it. The same text gives the same bytes.

    sentencepiece keeps all lines in memory, so a large corpus is best passed as a sample.
    Ids: 0 `<unk>`, 1 `<pad>`, then `control_tokens` in their order, the reserved ones, newline, tab, 256 bytes, pieces.

    Args:
        texts: the training text; documents or parts of them.
        vocab_size: number of ids, all of the above included.
        control_tokens: tokens that only the program can emit; `<eot>` must be one of them.
        path: the model file; its folder is created.

    Raises:
        TokenizerError: no text, or a vocabulary that is too large or too small for it.
        MindPanguError: whatever the iterator of `texts` raises, unchanged.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, model.getvalue())
    return Tokenizer(model.getvalue(), str(path))


def reserved_control_tokens() -> list[str]:
    """The spare ones, in the order in which they are to be used."""
    return [f"<reserved_{index}>" for index in range(RESERVED_CONTROL_TOKENS)]


class _Lines:
    """Lines that keep their newline. Remembers the text's own exception, which sentencepiece turns into a string."""

    def __init__(self, texts: Iterable[str]):
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
