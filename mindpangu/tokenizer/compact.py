"""A smaller tokenizer out of a larger one, without training: pieces are removed from the sentencepiece model.

Text whose segmentation needs only pieces that stay is segmented as before:

* BPE. Two neighbours are merged where the model has their union as a piece, best score first. What is merged inside a
  piece of the result is what is merged of that piece alone, as nothing crosses its borders; so with a piece stay those
  on its merge path. The best merge of the whole model is then still there in each step, and still the best.
* Unigram. The best path is still there. A single character that has lost its piece can be taken as unknown, which opens
  paths that were not there, at the score of the worst piece minus 10. So the worst piece stays: then such a path is
  worse than the one with the character's own piece was, and that one was not the best.

Other text is spelled with shorter pieces, in the end with bytes where the model has them.
"""

import itertools
from collections.abc import Set

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.tokenizer.sentencepiece_tokenizer import Tokenizer

_PIECE = sentencepiece_model.ModelProto.SentencePiece
_BLANK = "\u2581"
_BPE, _UNIGRAM = sentencepiece_model.TrainerSpec.BPE, sentencepiece_model.TrainerSpec.UNIGRAM


class Vocabulary:
    """The pieces of a tokenizer, and which of them need which.

    Attributes:
        always: ids that stay whatever is removed: control tokens, bytes, the unknown piece, user-defined symbols, the
            single blank (one that is spelled in bytes decodes to its stand-in ▁), in a unigram model the piece of the
            lowest score, and in a BPE model what these are merged from.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._model = sentencepiece_model.ModelProto.FromString(tokenizer.model_bytes)
        self._is_bpe = self._model.trainer_spec.model_type == _BPE
        # BPE merges to unused pieces as well, and takes them apart in the end
        mergeable = (_PIECE.NORMAL, _PIECE.UNUSED)
        self._id_of = {piece.piece: i for i, piece in enumerate(self._model.pieces) if piece.type in mergeable}
        self._score = {text: self._model.pieces[index].score for text, index in self._id_of.items()}
        self._needs: dict[int, frozenset[int]] = {}
        self.always = self._find_always()

    def needs(self, index: int) -> frozenset[int]:
        """Ids that stay where this one stays: itself, and in a BPE model the pieces on its merge path."""
        if index not in self._needs:
            text = self._model.pieces[index].piece
            merged = _merges(text, self._score) if self._is_bpe and self._id_of.get(text) == index else ()
            self._needs[index] = frozenset((index, *(self._id_of[part] for part in merged)))
        return self._needs[index]

    def compacted(self, kept: Set[int]) -> tuple[Tokenizer, np.ndarray]:
        """`compact` of the tokenizer."""
        stays = self.always.union(*map(self.needs, kept))
        old_ids = np.array(sorted(stays), np.int64)
        model = sentencepiece_model.ModelProto()
        model.CopyFrom(self._model)
        del model.pieces[:]
        model.pieces.extend(self._model.pieces[index] for index in old_ids.tolist())
        model.trainer_spec.vocab_size = len(old_ids)
        return Tokenizer(model.SerializeToString(deterministic=True), "of the smaller vocabulary"), old_ids

    def _find_always(self) -> frozenset[int]:
        pieces, blank = self._model.pieces, self._id_of.get(_BLANK)
        always = {index for index, piece in enumerate(pieces) if piece.type != _PIECE.NORMAL or index == blank}
        normal = [index for index, piece in enumerate(pieces) if piece.type == _PIECE.NORMAL]
        if self._model.trainer_spec.model_type == _UNIGRAM and normal:
            always.add(min(normal, key=lambda index: pieces[index].score))
        return frozenset().union(*map(self.needs, always))


def compact(tokenizer: Tokenizer, kept: Set[int]) -> tuple[Tokenizer, np.ndarray]:
    """A tokenizer with some of the pieces.

    Args:
        kept: ids of the pieces of text to keep; with them stays what they need, and what always stays (`Vocabulary`).

    Returns:
        (the smaller tokenizer, int64 [its vocab_size]: the former id of each of its ids, ascending).
    """
    return Vocabulary(tokenizer).compacted(kept)


def _merges(piece: str, score: dict[str, float]) -> list[str]:
    """What is made of the characters of a piece, best merge first, the leftmost of equal ones."""
    parts, made = list(piece), []
    while len(parts) > 1:
        pairs = [(-score[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.append(parts[at])
    return made
