"""Makes a tokenizer smaller without training, by removing pieces from its sentencepiece model.

Text whose segmentation uses only kept pieces is segmented as before:

* BPE merges two neighbours if their concatenation is a piece, best score first. Merges never cross the borders of a
  piece in the result, so the merges inside a piece are the same as if it stood by itself. Keeping a piece therefore
  means keeping the pieces on its merge path. Then the best merge of the full model is available at every step, and it
  is still the best.
* Unigram finds the best path, which is still available. A character whose piece was removed may become unknown, which
  opens new paths; an unknown character scores as the worst piece minus 10. So the worst piece is always kept: a new
  path then scores lower than the same path with the character's own piece did, and that one was not the best.

Other text is spelled with shorter pieces, and with bytes if the model has them.
"""

import itertools
from collections.abc import Set

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.tokenizer.sentencepiece_tokenizer import Tokenizer

_PIECE = sentencepiece_model.ModelProto.SentencePiece
_BLANK = "\u2581"
_BPE = sentencepiece_model.TrainerSpec.BPE
_UNIGRAM = sentencepiece_model.TrainerSpec.UNIGRAM


class PieceDependencies:
    """The pieces of a tokenizer, and the other pieces that each one needs.

    Attributes:
        always: ids that are always kept: control tokens, bytes, the unknown piece, user-defined symbols, the single
            blank (spelled in bytes it would decode to ▁), the piece with the lowest score in a unigram model, and in a
            BPE model the pieces on the merge paths of all these.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._model = sentencepiece_model.ModelProto.FromString(tokenizer.model_bytes)
        self._is_bpe = self._model.trainer_spec.model_type == _BPE
        # BPE also merges into unused pieces, and splits them again at the end
        mergeable = (_PIECE.NORMAL, _PIECE.UNUSED)
        self._id_of = {piece.piece: i for i, piece in enumerate(self._model.pieces) if piece.type in mergeable}
        self._score = {text: self._model.pieces[index].score for text, index in self._id_of.items()}
        self._needs: dict[int, frozenset[int]] = {}
        self.always = self._find_always()

    def needs(self, index: int) -> frozenset[int]:
        """Returns the ids that must be kept with this one: itself, and in a BPE model the pieces on its merge path."""
        if index not in self._needs:
            text = self._model.pieces[index].piece
            merged = _merges(text, self._score) if self._is_bpe and self._id_of.get(text) == index else ()
            self._needs[index] = frozenset((index, *(self._id_of[part] for part in merged)))
        return self._needs[index]

    def compacted(self, kept: Set[int]) -> tuple[Tokenizer, np.ndarray]:
        """Returns `compact(tokenizer, kept)`."""
        closure = self.always.union(*map(self.needs, kept))
        old_ids = np.array(sorted(closure), np.int64)
        model = sentencepiece_model.ModelProto()
        model.CopyFrom(self._model)
        del model.pieces[:]
        model.pieces.extend(self._model.pieces[index] for index in old_ids.tolist())
        model.trainer_spec.vocab_size = len(old_ids)
        return Tokenizer(model.SerializeToString(deterministic=True), "of the smaller vocabulary"), old_ids

    def _find_always(self) -> frozenset[int]:
        pieces = self._model.pieces
        blank = self._id_of.get(_BLANK)
        always = {index for index, piece in enumerate(pieces) if piece.type != _PIECE.NORMAL or index == blank}
        normal = [index for index, piece in enumerate(pieces) if piece.type == _PIECE.NORMAL]
        if self._model.trainer_spec.model_type == _UNIGRAM and normal:
            always.add(min(normal, key=lambda index: pieces[index].score))
        return frozenset().union(*map(self.needs, always))


def compact(tokenizer: Tokenizer, kept: Set[int]) -> tuple[Tokenizer, np.ndarray]:
    """Returns a tokenizer with only some of the pieces.

    Args:
        kept: ids of the text pieces to keep. The pieces that they need, and those that are always kept, are added
            (`PieceDependencies`).

    Returns:
        (the smaller tokenizer, int64 [its vocab_size]: the old id of each new id, ascending).
    """
    return PieceDependencies(tokenizer).compacted(kept)


def _merges(piece: str, score: dict[str, float]) -> list[str]:
    """Returns the results of merging a piece's characters, in order: best score first, ties from the left."""
    parts = list(piece)
    merged: list[str] = []
    while len(parts) > 1:
        pairs = [(-score[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merged.append(parts[at])
    return merged
