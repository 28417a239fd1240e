"""A safetensors file that records its kind and a digest, so that altered files are detected."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.display import describe_error, short_text
from mindpangu.errors import MindPanguError
from mindpangu.files import write_bytes_atomically
from mindpangu.tensor_format import decode
from mindpangu.untrusted import DIGEST, parse_json, read_bytes, read_record

_HEADER = "mindpangu"
_FILE_LIMIT = 1 << 30  # bytes
_File = TypeVar("_File", bound="VerifiedFile")


@dataclass(frozen=True)
class _Signed:
    """The entry in the metadata of the file: the content with its kind, format version, and digest."""

    kind: str
    format_version: str
    digest: Annotated[str, DIGEST]
    content: dict[str, Any]


class VerifiedFile(ABC):
    """Base class of files that hold tensors and a JSON header, with a digest over both.

    A subclass defines the content and converts it with `_header`, `_tensors` and `_from_content`.

    Attributes:
        kind: name of the content in error messages. Part of the format.
        format_version: version of this kind's format.
        error: exception class raised for an unreadable file.
        remedy: advice to the user in error messages.
    """

    kind: ClassVar[str]
    format_version: ClassVar[str]
    error: ClassVar[type[MindPanguError]]
    remedy: ClassVar[str]

    @cached_property
    def digest(self) -> str:
        """BLAKE2 hash of kind, header and tensors, 32 hex digits."""
        return self._digest(self._header(), self._tensors())

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        header = self._header()
        tensors = self._tensors()
        signed = {"kind": self.kind, "format_version": self.format_version, "digest": self.digest, "content": header}
        # a single header entry, because safetensors writes several in arbitrary order; so equal contents give equal
        # files
        write_bytes_atomically(path, encode_tensors(tensors, {_HEADER: json.dumps(signed, sort_keys=True)}))

    @classmethod
    def load(cls: type[_File], path: Path) -> _File:
        """Reads and verifies a file.

        Raises:
            MindPanguError: `error`, if the file is missing, truncated, altered, or of another kind or format.
        """
        try:
            metadata, tensors = decode(read_bytes(path, _FILE_LIMIT))
            if _HEADER not in metadata:
                raise ValueError(f"{_HEADER} is missing in its header")
            signed = read_record(_Signed, parse_json(metadata[_HEADER]), _HEADER)
        except (OSError, ValueError) as error:
            raise cls._incomplete(path, error) from None
        if signed.kind != cls.kind:
            raise cls.error(f"{path} is a file of {short_text(signed.kind)}, not of {cls.kind}; {cls.remedy}")
        if signed.format_version != cls.format_version:
            raise cls.error(
                f"{path} has format {short_text(signed.format_version)} of {cls.kind}; this version of mindpangu reads "
                f"format {cls.format_version}; {cls.remedy}"
            )
        if signed.digest != cls._digest(signed.content, tensors):
            raise cls.error(f"{path} was altered: its content does not match the digest in its header; {cls.remedy}")
        try:
            return cls._from_content(signed.content, tensors)
        except ValueError as error:
            raise cls._incomplete(path, error) from None

    @classmethod
    def _incomplete(cls, path: Path, error: Exception) -> MindPanguError:
        return cls.error(f"{path} is not a complete file of {cls.kind}: {describe_error(error)}; {cls.remedy}")

    @classmethod
    @abstractmethod
    def _from_content(cls: type[_File], header: dict[str, Any], tensors: dict[str, np.ndarray]) -> _File:
        """Builds the file from its content. Raises ValueError if `_header` and `_tensors` cannot have written this."""

    @abstractmethod
    def _header(self) -> dict[str, Any]: ...

    @abstractmethod
    def _tensors(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def _digest(cls, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
        hasher = hashlib.blake2b(json.dumps([cls.kind, header], sort_keys=True).encode(), digest_size=16)
        for name, values in sorted(tensors.items()):
            hasher.update(json.dumps([name, values.dtype.str, values.shape]).encode())
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.hexdigest()
