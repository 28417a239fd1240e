"""Re-mapping of an embedding between vocabularies, by the text of the tokens.

A token of the new vocabulary that the old one has too takes over its row. One that is new starts from the mean of the
rows of the old tokens that its text is made of, or from random numbers where the old vocabulary cannot spell it.
"""

from dataclasses import dataclass

import numpy as np

from mindpangu.model.initialization import normal
from mindpangu.tokenizer import Tokenizer

# What stands for a blank or a newline in a vocabulary: ▁ in every sentencepiece model, ▂ and ▃ in PanGu-α's.
_PLAIN = str.maketrans({"\u2581": " ", "\u2582": " ", "\u2583": "\n"})


@dataclass(frozen=True)
class VocabularyMap:
    """For each id of the new vocabulary the ids of the old one that it comes from: itself, its parts, or none.

    Attributes:
        sources: new id → old ids.
    """

    sources: tuple[tuple[int, ...], ...]

    @staticmethod
    def between(old: Tokenizer, new: Tokenizer, parts: bool = True) -> "VocabularyMap":
        """By text. Control tokens and bytes are matched by their names.

        Args:
            parts: new tokens come from the old tokens that their text is made of; False: from none.
        """
        same = {old.piece(index): index for index in range(old.vocab_size)} if old.kind == new.kind else {}
        id_of: dict[str, int] = {}
        for at_a_border in (True, False):
            for index in range(old.vocab_size):
                id_of.setdefault(_key(old, index, at_a_border), index)

        def of(index: int) -> tuple[int, ...]:
            if new.piece(index) in same:
                return (same[new.piece(index)],)
            for at_a_border in (True, False):
                if (key := _key(new, index, at_a_border)) in id_of:
                    return (id_of[key],)
            if not parts or not new.is_text(index):
                return ()
            ids = tuple(old.encode(_key(new, index)))
            return () if old.unk_id in ids else ids

        return VocabularyMap(tuple(of(index) for index in range(new.vocab_size)))

    @property
    def shared(self) -> int:
        """How many tokens take over a row."""
        return sum(len(sources) == 1 for sources in self.sources)

    @property
    def composed(self) -> int:
        """How many start from the mean of several rows."""
        return sum(len(sources) > 1 for sources in self.sources)

    def rows(self, old_VH: np.ndarray, num_rows: int, random_VH: np.ndarray) -> np.ndarray:
        """float32 [num_rows, H]: the embedding of the new vocabulary.

        Args:
            old_VH: that of the old one. num_rows: rows of the new one; those beyond its tokens are random.
            random_VH: [num_rows, H], the random rows.
        """
        new_VH = np.array(random_VH, np.float32)
        for index, sources in enumerate(self.sources):
            if sources:
                new_VH[index] = old_VH[list(sources)].mean(0)
        return new_VH


def random_rows(seed: int, stream: str, num_rows: int, hidden: int, std: float) -> np.ndarray:
    """float32 [num_rows, H] from N(0, std²): what new rows start from. `stream`: table and vocabulary, "a/b"."""
    return normal(seed, stream, (num_rows, hidden), std)


def _key(tokenizer: Tokenizer, index: int, at_a_border: bool = True) -> str:
    """What an id stands for; not `at_a_border`: without the blank that PanGu-α's ▁ may be.

    It cuts text into words first and begins each with ▁, also where there is no blank, so its ▁她 is 她 as well.
    """
    piece = tokenizer.piece(index)
    if not tokenizer.is_text(index):
        return piece
    if not at_a_border and tokenizer.kind == "pangu_alpha" and len(piece) > 1:
        piece = piece.removeprefix("\u2581")
    return piece.translate(_PLAIN)
