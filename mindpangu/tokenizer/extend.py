"""Adds control tokens to a sentencepiece model that was trained without them, e.g. a published multilingual one."""

from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.display import short_text
from mindpangu.errors import TokenizerError
from mindpangu.tokenizer.sentencepiece_tokenizer import END_OF_TEXT, PADDING, Tokenizer
from mindpangu.tokenizer.training import reserved_control_tokens

_PIECE = sentencepiece_model.ModelProto.SentencePiece


def extend(model_bytes: bytes, control_tokens: Sequence[str], name: str) -> Tokenizer:
    """Appends padding, the given control tokens, and the reserved ones to a model where it lacks them.

    No id changes, and text is segmented as before because control tokens have no text.

    Args:
        model_bytes: content of the sentencepiece model file.
        control_tokens: tokens to add; `<eot>` must be one of them.
        name: name of the model in error messages.

    Raises:
        TokenizerError: the content is not a sentencepiece model, or the model has a control token as ordinary text.
    """
    if END_OF_TEXT not in control_tokens:
        raise TokenizerError(f"control tokens {list(control_tokens)} lack {END_OF_TEXT}, which ends every document")
    try:
        model = sentencepiece_model.ModelProto.FromString(model_bytes)
    except Exception as error:  # protobuf's own class is not public
        raise TokenizerError(
            f"tokenizer {name} is damaged or not a sentencepiece model ({short_text(str(error))})"
        ) from None
    kinds = {piece.piece: piece.type for piece in model.pieces}
    for token in (PADDING, *control_tokens, *reserved_control_tokens()):
        if token not in kinds:
            model.pieces.add(piece=token, score=0.0, type=_PIECE.CONTROL)
            kinds[token] = _PIECE.CONTROL
        elif kinds[token] != _PIECE.CONTROL:
            raise TokenizerError(
                f"tokenizer {name} has {token!r} as ordinary text, so it cannot be a control token as well; use "
                "another model"
            )
    model.trainer_spec.pad_piece = PADDING
    model.trainer_spec.pad_id = list(kinds).index(PADDING)
    model.trainer_spec.vocab_size = len(model.pieces)
    return Tokenizer(model.SerializeToString(deterministic=True), name)


def describe_losses(model_bytes: bytes) -> list[str]:
    """Lists what a model does not preserve of a text; empty if decoding returns exactly what was encoded.

    Models from `train_tokenizer` preserve everything; published ones often do not.
    """
    model = sentencepiece_model.ModelProto.FromString(model_bytes)
    normalizer = model.normalizer_spec
    losses = []
    if normalizer.precompiled_charsmap:
        losses.append(f"it replaces characters with others ({normalizer.name or 'normalization'})")
    if normalizer.remove_extra_whitespaces:
        losses.append("it removes repeated blanks")
    if not any(piece.type == _PIECE.BYTE for piece in model.pieces):
        losses.append(f"characters outside its {len(model.pieces):,} pieces become <unk>")
    return losses
