"""Maps an embedding from one vocabulary to another by the text of the tokens.

A token that both vocabularies have keeps its row. A new token starts from the mean of the rows of the old tokens that
spell its text, or from a random row if the old vocabulary cannot spell it.
"""

from dataclasses import dataclass

import numpy as np

from mindpangu.model.initialization import normal
from mindpangu.tokenizer import Tokenizer

# Characters that represent a blank or a newline: ▁ in every sentencepiece model, ▂ and ▃ in PanGu-α's.
_PLAIN = str.maketrans({"\u2581": " ", "\u2582": " ", "\u2583": "\n"})


@dataclass(frozen=True)
class VocabularyMap:
    """Maps each id of a new vocabulary to the ids of the old one whose rows it starts from.

    Attributes:
        sources: new id → old ids: the same token's, those of several tokens that spell it, or none.
    """

    sources: tuple[tuple[int, ...], ...]

    @staticmethod
    def between(old: Tokenizer, new: Tokenizer, compose: bool = True) -> "VocabularyMap":
        """Matches the tokens of two vocabularies by text, and control tokens and bytes by name.

        Args:
            compose: True to start new tokens from the old tokens that spell their text; False to start from none.
        """
        same = {old.piece(index): index for index in range(old.vocab_size)} if old.kind == new.kind else {}
        id_of: dict[str, int] = {}
        for at_a_border in (True, False):
            for index in range(old.vocab_size):
                id_of.setdefault(_key(old, index, at_a_border), index)

        def sources_of(index: int) -> tuple[int, ...]:
            if new.piece(index) in same:
                return (same[new.piece(index)],)
            for at_a_border in (True, False):
                if (key := _key(new, index, at_a_border)) in id_of:
                    return (id_of[key],)
            if not compose or not new.is_text(index):
                return ()
            ids = tuple(old.encode(_key(new, index)))
            return () if old.unk_id in ids else ids

        return VocabularyMap(tuple(sources_of(index) for index in range(new.vocab_size)))

    @property
    def shared(self) -> int:
        """Number of tokens that keep their row."""
        return sum(len(sources) == 1 for sources in self.sources)

    @property
    def composed(self) -> int:
        """Number of tokens that start from the mean of several rows."""
        return sum(len(sources) > 1 for sources in self.sources)

    def rows(self, old_VH: np.ndarray, num_rows: int, random_VH: np.ndarray) -> np.ndarray:
        """Returns the embedding of the new vocabulary, float32 [num_rows, H].

        Args:
            old_VH: embedding of the old vocabulary.
            num_rows: number of rows of the new embedding; those beyond its tokens are random.
            random_VH: [num_rows, H], the random rows.
        """
        new_VH = np.array(random_VH, np.float32)
        for index, sources in enumerate(self.sources):
            if sources:
                new_VH[index] = old_VH[list(sources)].mean(0)
        return new_VH


def random_rows(seed: int, stream: str, num_rows: int, hidden: int, std: float) -> np.ndarray:
    """Draws the rows that new tokens start from, float32 [num_rows, H], from N(0, std²).

    Args:
        stream: name of the random stream, made of table and vocabulary: "word_embedding/main".
    """
    return normal(seed, stream, (num_rows, hidden), std)


def _key(tokenizer: Tokenizer, index: int, at_a_border: bool = True) -> str:
    """Returns the text of an id, the key by which vocabularies are matched.

    PanGu-α's tokenizer first cuts text into words and begins each with ▁, even without a blank, so its ▁她 is also 她.

    Args:
        at_a_border: True if a leading ▁ of PanGu-α's tokenizer is a blank; False to drop it.
    """
    piece = tokenizer.piece(index)
    if not tokenizer.is_text(index):
        return piece
    if not at_a_border and tokenizer.kind == "pangu_alpha" and len(piece) > 1:
        piece = piece.removeprefix("\u2581")
    return piece.translate(_PLAIN)
