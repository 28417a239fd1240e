"""From tokens to text that may be shown: no half characters, nothing of a stop string."""

from collections.abc import Sequence

from mindpangu.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what bytes decode to that are not a character, or not yet
_CONTEXT = 8  # tokens


def whole_characters(text: str) -> str:
    """A decoded text without the halves of characters that a cut through their bytes leaves at its ends."""
    return text.strip(_INCOMPLETE)


class TextStream:
    """Decodes tokens as they come. A character may be spelled in bytes, a token each: it appears when it is whole.

    Args:
        prompt: the tokens before. Some tokenizers leave out a blank at the start of what they decode, so new tokens are
            decoded behind some that are known already.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._known, self._new = list(prompt[-_CONTEXT:]), []

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._new.append(token)
        text = self._decode()
        return "" if text.endswith(_INCOMPLETE) else self._advance(text)

    def end(self) -> str:
        """What is left when no token comes any more."""
        return self._advance(self._decode())

    def _decode(self) -> str:
        known = self._tokenizer.decode(self._known)
        return self._tokenizer.decode([*self._known, *self._new])[len(known) :]

    def _advance(self, text: str) -> str:
        self._known, self._new = [*self._known, *self._new][-_CONTEXT:], []
        return text


class StopStrings:
    """Cuts a text before the first stop string that appears in it, wherever the pieces of the text begin and end.

    Attributes:
        found: whether one has appeared.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that cannot be part of a stop string any more."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when no text comes any more."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text a stop string may begin with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
