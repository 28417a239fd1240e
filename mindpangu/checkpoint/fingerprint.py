"""Size and hash of a file: what the manifest keeps of it."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

CHUNK = 1 << 22
"""Bytes that are read at once."""

Entry = dict[str, int | str]


class Fingerprint:
    """Of content that comes in pieces."""

    def __init__(self) -> None:
        self._bytes, self._hash = 0, hashlib.blake2b(digest_size=16)

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, counted as they pass."""
        for chunk in chunks:
            self._bytes += len(chunk)
            self._hash.update(chunk)
            yield chunk

    def entry(self) -> Entry:
        """Its entry in the manifest."""
        return {"bytes": self._bytes, "blake2b": self._hash.hexdigest()}

    @staticmethod
    def from_chunks(chunks: Iterable[bytes]) -> Entry:
        fingerprint = Fingerprint()
        for _ in fingerprint.through(chunks):
            pass
        return fingerprint.entry()


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file in pieces."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
