"""Converts text ↔ token ids with a trained sentencepiece model (`training.py` trains one).

Control tokens (`<eot>`, `<cn>`, `<pad>` …) are sentencepiece *control* symbols: they have an id but no text. The
characters "<eot>" in a document are spelled in ordinary pieces and cannot end it.

PanGu-α's model is recognised by its pieces and used as published: see `pangu_alpha.py`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from mindpangu.display import describe_error, short_text
from mindpangu.errors import TokenizerError
from mindpangu.tokenizer.pangu_alpha import PanguAlphaPieces, is_pangu_alpha
from mindpangu.untrusted import read_bytes

END_OF_TEXT = "<eot>"
PADDING = "<pad>"
_MODEL_LIMIT = 1 << 28  # bytes


class Tokenizer:
    """A loaded sentencepiece model.

    With a model from `train_tokenizer`, all valid Unicode text round-trips through `encode` and `decode`, except that
    U+2581 (▁), which sentencepiece uses for a blank, decodes to a blank. PanGu-α's model loses more: see
    `pangu_alpha.py`.

    Attributes:
        kind: "sentencepiece" or "pangu_alpha"; how text is processed before encoding and after decoding.
        vocab_size: number of token ids, including control tokens.
        pad_id, eot_id: ids of padding and of the end of a document.
        unk_id: id of characters that cannot be spelled. With byte fallback `encode` never returns it.
        model_bytes: content of the model file.
        digest: hex hash of `model_bytes` and the kind. Tokenizers with equal digests are the same.
    """

    def __init__(self, model_bytes: bytes, name: str) -> None:
        """Parses a model; `name` names it in error messages. Raises TokenizerError like `load`."""
        self._name = name
        self._processor = _parse(model_bytes, name)
        self.model_bytes = model_bytes
        alpha = is_pangu_alpha(self._processor)
        self._pieces = PanguAlphaPieces(self._processor) if alpha else _Pieces(self._processor)
        self.kind: str = self._pieces.kind
        self.digest = hashlib.blake2b(
            model_bytes, digest_size=16, person=self.kind.encode() if alpha else b""
        ).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        self.unk_id: int = self._processor.unk_id()
        self.pad_id: int = self._pieces.pad_id
        if self.pad_id < 0:
            raise TokenizerError(
                f"tokenizer {name} has no padding token; `mindpangu tokenizer extend --model {name} --out FILE` adds "
                "one, and control tokens"
            )
        self.eot_id = self.control_id(END_OF_TEXT)

    @classmethod
    def load(cls, path: Path, *, follow_link: bool = False, given_by: str = "") -> "Tokenizer":
        """Loads a model file.

        Args:
            given_by: the option or key that names the file, for messages.
            follow_link: True for a path that the user named, which may be a link; False for one in a run folder or a
                checkpoint, which may come from elsewhere.

        Raises:
            TokenizerError: the file is missing or damaged, or lacks the padding or end-of-text control token.
        """
        try:
            model_bytes = read_model(path, follow_link=follow_link)
        except TokenizerError as error:
            raise TokenizerError(f"{error}; check {given_by}" if given_by else str(error)) from None
        return cls(model_bytes, str(path))

    def control_id(self, token: str) -> int:
        """Returns the id of a control token. Raises TokenizerError if the model lacks it or has it as ordinary text."""
        if not self.has_control(token):
            raise TokenizerError(
                f"tokenizer {self._name} has no control token {token!r}; "
                "train it for the domains of this run, or leave data.tokenizer empty"
                + ("; PanGu-α's goes with domains.preset pangu_alpha" if self.kind == PanguAlphaPieces.kind else "")
            )
        return self._processor.piece_to_id(token)

    def has_control(self, token: str) -> bool:
        """True if the model has this control token."""
        try:
            token.encode("utf-8")  # sentencepiece accepts nothing else
        except UnicodeEncodeError:
            return False
        return self._pieces.has_control(token)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without control tokens. Raises TokenizerError for lone surrogates."""
        return self.encode_batch([text], threads=1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Encodes many texts on several threads. The number of threads does not affect the result."""
        try:
            return self._pieces.encode(texts, threads)
        except (RuntimeError, TypeError):  # sentencepiece does not say which string it cannot convert
            for text in texts:
                require_unicode(text)
            raise

    def count_unknown_characters(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> int:
        """Returns the number of characters, after normalization, that were encoded as the unknown token.

        Args:
            texts: any texts.
            ids: the result of `encode_batch(texts)`, where one token stands for a run of unknown characters.
        """
        with_unknown = [index for index, of_text in enumerate(ids) if self.unk_id in of_text]
        pieces = self._pieces.surfaces([texts[index] for index in with_unknown])
        return sum(
            len(surface)
            for index, of_text in zip(with_unknown, pieces, strict=True)
            for token, surface in zip(ids[index], of_text, strict=True)
            if token == self.unk_id
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids. Control tokens and padding are dropped; invalid UTF-8 becomes U+FFFD.

        Raises:
            TokenizerError: an id outside [0, vocab_size).
        """
        plain = [int(index) for index in ids]
        for index in plain:
            self._require_id(index)
        return self._pieces.decode(plain)

    def piece(self, index: int) -> str:
        """Returns the piece of an id as the model spells it, for display (blanks appear as ▁)."""
        self._require_id(index)
        return self._processor.id_to_piece(int(index))

    def is_text(self, index: int) -> bool:
        """True if an id is an ordinary piece of text: not a control token, a byte, or the unknown token."""
        self._require_id(index)
        special_kinds = (self._pieces.is_control, self._processor.is_byte, self._processor.is_unknown)
        return not any(is_special(int(index)) for is_special in special_kinds)

    def byte(self, index: int) -> int | None:
        """Returns the byte of a byte-fallback id; None for other ids."""
        self._require_id(index)
        return int(self.piece(index)[1:-1], 16) if self._processor.is_byte(int(index)) else None

    def _require_id(self, index: int) -> None:
        if not 0 <= index < self.vocab_size:
            raise TokenizerError(f"token id {index} is outside the vocabulary [0, {self.vocab_size}) of {self._name}")


class _Pieces:
    """Converts text ↔ ids with a model that takes text unchanged."""

    kind = "sentencepiece"

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self.pad_id: int = processor.pad_id()

    def has_control(self, token: str) -> bool:
        index = self._processor.piece_to_id(token)
        return self._processor.id_to_piece(index) == token and self.is_control(index)

    def is_control(self, index: int) -> bool:
        return self._processor.is_control(index)

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)

    def surfaces(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the pieces of each text, with unknown pieces as the characters that they stand for."""
        return self._processor.encode(list(texts), out_type=str)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(ids)


def read_model(path: Path, *, follow_link: bool = False) -> bytes:
    """Reads a model file. Raises TokenizerError if the file cannot be read or is too large."""
    try:
        return read_bytes(Path(path), _MODEL_LIMIT, follow_link=follow_link)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"tokenizer {path} cannot be read: {describe_error(error)}") from None


def _parse(model_bytes: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        if not model_bytes:  # sentencepiece would accept this and load nothing
            raise RuntimeError("the file is empty")
        processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        for index in range(processor.vocab_size()):
            processor.id_to_piece(index)  # raises UnicodeDecodeError for a piece that is not UTF-8
        return processor
    except (RuntimeError, ValueError) as error:
        why = "a piece is not UTF-8" if isinstance(error, UnicodeDecodeError) else short_text(str(error))
        raise TokenizerError(
            f"tokenizer {name} is damaged or not a sentencepiece model ({why}); train it again"
        ) from None


def require_unicode(text: str) -> None:
    """Raises TokenizerError if a text has a lone surrogate, which cannot be encoded in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = text[error.start]
        raise TokenizerError(
            f"the text contains a lone surrogate U+{ord(character):04X} at character {error.start}, which is not valid "
            "Unicode; pass UTF-8 text"
        ) from None
