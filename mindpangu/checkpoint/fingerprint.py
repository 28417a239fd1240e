"""Fingerprints: size and hash of a file, as the manifest records them."""

import hashlib
from collections.abc import Iterable, Iterator

from mindpangu.files import Buffer

Entry = dict[str, int | str]
"""A file's entry in the manifest: {"bytes": size, "blake2b": hash}."""


class Fingerprint:
    """Size and hash of content that arrives in pieces."""

    def __init__(self) -> None:
        self._bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def through(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """Yields the same pieces and adds each one to the fingerprint."""
        for chunk in chunks:
            self._bytes += len(chunk)
            self._hash.update(chunk)
            yield chunk

    def entry(self) -> Entry:
        """Returns the manifest entry of the content so far."""
        return {"bytes": self._bytes, "blake2b": self._hash.hexdigest()}

    @staticmethod
    def from_chunks(chunks: Iterable[Buffer]) -> Entry:
        """Returns the manifest entry of content in pieces."""
        fingerprint = Fingerprint()
        for _ in fingerprint.through(chunks):
            pass
        return fingerprint.entry()
