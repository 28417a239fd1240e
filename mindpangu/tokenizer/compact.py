"""A smaller tokenizer out of a larger one, without training: pieces are removed from the sentencepiece model.

Text whose segmentation needs only pieces that stay is segmented as before: in a unigram model the best path is still
there, and in a BPE model the pieces on a kept piece's merge path stay with it. Other text is spelled with shorter
pieces, in the end with bytes where the model has them.
"""

import itertools
from collections.abc import Set

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.tokenizer.sentencepiece_tokenizer import Tokenizer

_PIECE = sentencepiece_model.ModelProto.SentencePiece
_BLANK = "\u2581"
_BPE = sentencepiece_model.TrainerSpec.BPE


def compact(tokenizer: Tokenizer, kept: Set[int]) -> tuple[Tokenizer, np.ndarray]:
    """A tokenizer with some of the pieces.

    Args:
        kept: ids of the pieces of text to keep. Control tokens, bytes, the unknown piece, user-defined symbols and the
            single blank always stay (a blank that is spelled in bytes decodes to its stand-in ▁), and in a BPE model
            what `kept` is merged from.

    Returns:
        (the smaller tokenizer, int64 [its vocab_size]: the former id of each of its ids, ascending).
    """
    model = sentencepiece_model.ModelProto.FromString(tokenizer.model_bytes)
    always = {i for i, piece in enumerate(model.pieces) if piece.type != _PIECE.NORMAL or piece.piece == _BLANK}
    stays = always | set(kept)
    if model.trainer_spec.model_type == _BPE:
        stays |= _merged_from(model, stays)
    old_ids = np.array(sorted(stays), np.int64)
    pieces = [model.pieces[index] for index in old_ids.tolist()]
    del model.pieces[:]
    model.pieces.extend(pieces)
    model.trainer_spec.vocab_size = len(pieces)
    return Tokenizer(model.SerializeToString(deterministic=True), "of the smaller vocabulary"), old_ids


def _merged_from(model: sentencepiece_model.ModelProto, stays: Set[int]) -> set[int]:
    """Ids of the pieces that BPE makes on its way to the pieces that stay."""
    id_of = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == _PIECE.NORMAL}
    score = {text: model.pieces[index].score for text, index in id_of.items()}
    found: set[int] = set()
    for index in stays:
        piece = model.pieces[index]
        if piece.type == _PIECE.NORMAL:
            found.update(id_of[text] for text in _merges(piece.piece, score))
    return found


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
