"""Turns tokens into text to show, without partial characters and without any part of a stop string."""

import codecs
import itertools
from collections.abc import Sequence

from mindpangu.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # invalid bytes, and bytes of a character that is not yet complete, decode to this
_CONTEXT = 8  # tokens


def whole_characters(text: str) -> str:
    """Strips partial characters from the ends of a decoded text that was cut between their bytes."""
    return text.strip(_INCOMPLETE)


def without_partial_character(ids: Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    """Drops the last tokens if they are the first bytes of a character whose other bytes are missing."""
    values = map(tokenizer.byte, reversed(ids))
    last_bytes = [value for value in itertools.takewhile(lambda value: value is not None, values) if value is not None]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(reversed(last_bytes)))
    unfinished, _ = decoder.getstate()
    return ids[: len(ids) - len(unfinished)]


class TextStream:
    """Decodes tokens one by one. A character that is spelled in bytes, one per token, appears when it is complete.

    Args:
        tokenizer: decodes the tokens.
        prompt: the tokens before the stream. Some tokenizers drop a leading blank when they decode, so new tokens are
            decoded together with some earlier ones.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._known = list(prompt[-_CONTEXT:])
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is now final."""
        self._new.append(token)
        text = self._decode()
        return "" if text.endswith(_INCOMPLETE) else self._advance(text)

    def end(self) -> str:
        """Returns the remaining text after the last token."""
        return self._advance(self._decode())

    def _decode(self) -> str:
        known = self._tokenizer.decode(self._known)
        return self._tokenizer.decode([*self._known, *self._new])[len(known) :]

    def _advance(self, text: str) -> str:
        self._known = [*self._known, *self._new][-_CONTEXT:]
        self._new = []
        return text


class StopStrings:
    """Cuts a text before its first stop string, even if the stop string spans several pieces of the text.

    Attributes:
        found: whether a stop string has appeared.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Adds a piece of text; returns the text that can no longer be part of a stop string."""
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found = True
            self._held = ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Returns the text that was held back, after the last piece."""
        text = self._held
        self._held = ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of the text that is a proper prefix of the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
