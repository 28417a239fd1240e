"""The tokenizer kind of PanGu-α: jieba's words, then a sentencepiece unigram model.

    text → jieba.cut → in each word ' ' → ▂ and '\\n' → ▃ → joined with blanks → sentencepiece
    ids → sentencepiece → blanks removed → ▂ → ' ' and ▃ → '\\n'

That is what PanGu-α's published code does, and its model of 40,000 pieces is meant for. Three things follow from it:

* Its special tokens are sentencepiece *user-defined* symbols, which match raw text. A document that contains the
  characters "<eot>" still does not give the token: jieba makes words of their own of "<" and ">", so blanks separate
  them before sentencepiece sees them.
* It loses text: the model's normalization (NFKC) turns "，" into ",", tabs and other white space than ' ' and '\\n' are
  dropped, characters outside the vocabulary become "⁇", and ▁ ▂ ▃ in a text come back as nothing, ' ' and '\\n'.
* It has no tokens of languages: documents are opened by nothing (the preset `pangu_alpha` of `domains.preset`).
"""

import functools
from collections.abc import Sequence

import sentencepiece

from mindpangu.errors import TokenizerError

BLANK, NEWLINE = "\u2582", "\u2583"
CONTROL_TOKENS = ("<sep>", "<pad>", "<mask>", "<eod>", "<eot>")

_FIRST = 3  # behind <unk>, <s>, </s>
_TO_PIECES = str.maketrans({" ": BLANK, "\n": NEWLINE})
_TO_TEXT = str.maketrans({" ": None, BLANK: " ", NEWLINE: "\n"})


def is_pangu_alpha(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether a model is of this kind: ▃, ▂ and the special tokens are its pieces 3 to 9, and ordinary ones."""
    special = (NEWLINE, BLANK, *CONTROL_TOKENS)
    if processor.vocab_size() < _FIRST + len(special):
        return False
    ids = range(_FIRST, _FIRST + len(special))
    return tuple(map(processor.id_to_piece, ids)) == special and not any(map(processor.is_control, ids))


class PanguAlphaPieces:
    """Text ↔ ids of a model of this kind."""

    kind = "pangu_alpha"

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
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
        """The pieces of each text; for unknown ones, what they stand for."""
        return self._processor.encode(_segmented(texts), out_type=str)

    def decode(self, ids: Sequence[int]) -> str:
        plain = [index for index in ids if not self.is_control(index)]
        return self._processor.decode(plain).translate(_TO_TEXT)


def _segmented(texts: Sequence[str]) -> list[str]:
    words = _words()
    return [" ".join(word.translate(_TO_PIECES) for word in words.cut(text)) for text in texts]


@functools.cache
def _words():
    """A jieba of our own, with its default dictionary whatever others in the process add to theirs.

    The dictionary is read directly: jieba would share a file of marshalled data in the temporary folder.
    """
    try:
        import jieba
    except ImportError:
        raise TokenizerError(
            "PanGu-α's tokenizer needs jieba, which is not installed; pip install 'mindpangu[alpha]' (or jieba==0.42.1)"
        ) from None
    words = jieba.Tokenizer()
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True
    return words
