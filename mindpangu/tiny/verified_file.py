"""A safetensors file that knows what it is and whether it was altered."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors

from mindpangu.errors import MindPanguError
from mindpangu.files import write_bytes_atomically

_HEADER = "mindpangu"
_File = TypeVar("_File", bound="VerifiedFile")


class VerifiedFile(ABC):
    """Tensors beside a JSON header, with a digest over both; a kind of file says what is in them.

    Attributes:
        kind: what the file holds, in the words of a message. format_version: of this kind.
        error: what a file that cannot be read raises. remedy: what to do about it.
    """

    kind: ClassVar[str]
    format_version: ClassVar[str]
    error: ClassVar[type[MindPanguError]]
    remedy: ClassVar[str]

    @cached_property
    def digest(self) -> str:
        """BLAKE2 hash over kind, header and tensors, 32 hex digits."""
        return self._digest(self._header(), self._tensors())

    def save(self, path: Path) -> None:
        """Replaces the file in one move."""
        header, tensors = self._header(), self._tensors()
        signed = {"kind": self.kind, "format_version": self.format_version, "digest": self.digest, "content": header}
        # one header entry, because safetensors writes several in any order: equal contents are equal files
        write_bytes_atomically(path, encode_tensors(tensors, {_HEADER: json.dumps(signed, sort_keys=True)}))

    @classmethod
    def load(cls: type[_File], path: Path) -> _File:
        """Raises `error`: missing, cut off, altered, of another kind or of another format."""
        try:
            with safe_open(path, framework="numpy") as file:
                signed = json.loads((file.metadata() or {})[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            kind, version, digest, header = (signed[key] for key in ("kind", "format_version", "digest", "content"))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise cls.error(f"{path} is not a whole file of {cls.kind} ({error}); {cls.remedy}") from None
        if kind != cls.kind:
            raise cls.error(f"{path} is a file of {kind}, not of {cls.kind}; {cls.remedy}")
        if version != cls.format_version:
            raise cls.error(
                f"{path} has format {version} of {cls.kind}; this version of mindpangu reads format "
                f"{cls.format_version}; {cls.remedy}"
            )
        if digest != cls._digest(header, tensors):
            raise cls.error(f"{path} was altered: its content does not match the digest in its header; {cls.remedy}")
        return cls._of(header, tensors)

    @classmethod
    @abstractmethod
    def _of(cls: type[_File], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> _File: ...

    @abstractmethod
    def _header(self) -> dict[str, Any]: ...

    @abstractmethod
    def _tensors(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def _digest(cls, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
        total = hashlib.blake2b(json.dumps([cls.kind, header], sort_keys=True).encode(), digest_size=16)
        for name, values in sorted(tensors.items()):
            total.update(json.dumps([name, values.dtype.str, values.shape]).encode())
            total.update(np.ascontiguousarray(values).tobytes())
        return total.hexdigest()
