"""PanGu-α's tokenizer: jieba segments text into words, then a sentencepiece unigram model encodes them.

    text → jieba.cut → in each word ' ' → ▂ and '\\n' → ▃ → joined with blanks → sentencepiece
    ids → sentencepiece → blanks removed → ▂ → ' ' and ▃ → '\\n'

This is what PanGu-α's published code does with its model of 40,000 pieces. It has three consequences:

* The special tokens are sentencepiece *user-defined* symbols, which match raw text. Yet a document that contains the
  characters "<eot>" does not produce the token: jieba separates "<" and ">" into words of their own, so sentencepiece
  sees them with blanks in between.
* Text is lost: the model's normalization (NFKC) turns "，" into ",". Whitespace other than ' ' and '\\n' is dropped.
  Characters outside the vocabulary become "⁇". ▁, ▂, and ▃ decode to nothing, ' ', and '\\n'.
* There are no language tokens: documents start without a control token (`domains.preset: pangu_alpha`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import sentencepiece

from mindpangu.errors import TokenizerError

BLANK = "\u2582"
NEWLINE = "\u2583"
CONTROL_TOKENS = ("<sep>", "<pad>", "<mask>", "<eod>", "<eot>")

_FIRST = 3  # after <unk>, <s>, </s>
_TO_PIECES = str.maketrans({" ": BLANK, "\n": NEWLINE})
_TO_TEXT = str.maketrans({" ": None, BLANK: " ", NEWLINE: "\n"})


def is_pangu_alpha(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """True if pieces 3 to 9 of a model are ▃, ▂, and PanGu-α's special tokens, and none of them is a control piece."""
    special = (NEWLINE, BLANK, *CONTROL_TOKENS)
    if processor.vocab_size() < _FIRST + len(special):
        return False
    ids = range(_FIRST, _FIRST + len(special))
    return tuple(map(processor.id_to_piece, ids)) == special and not any(map(processor.is_control, ids))


class PanguAlphaPieces:
    """Converts text ↔ ids with PanGu-α's model."""

    kind = "pangu_alpha"

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self._control_ids = frozenset(map(processor.piece_to_id, CONTROL_TOKENS))
        self.pad_id: int = processor.piece_to_id("<pad>")

    def has_control(self, token: str) -> bool:
        return token in CONTROL_TOKENS

    def is_control(self, index: int) -> bool:
        return index in self._control_ids or self._processor.is_control(index)

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return self._processor.encode(_segmented(texts), out_type=int, num_threads=threads)

    def surfaces(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the pieces of each text, with unknown pieces as the characters that they stand for."""
        return self._processor.encode(_segmented(texts), out_type=str)

    def decode(self, ids: Sequence[int]) -> str:
        plain = [index for index in ids if not self.is_control(index)]
        return self._processor.decode(plain).translate(_TO_TEXT)


def _segmented(texts: Sequence[str]) -> list[str]:
    words = _words()
    return [" ".join(word.translate(_TO_PIECES) for word in words.cut(text)) for text in texts]


@functools.cache
def _words() -> Any:
    """Returns a private jieba tokenizer, which words that other code adds to jieba's global dictionary do not affect.

    The dictionary is read directly because jieba would cache it as marshalled data in a shared temporary folder.
    """
    try:
        import jieba
    except ImportError:
        raise TokenizerError(
            "PanGu-α's tokenizer needs jieba, which is not installed; pip install jieba==0.42.1"
        ) from None
    words = jieba.Tokenizer()
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True  # keeps jieba from loading its cache
    return words
