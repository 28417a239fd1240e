"""Counts how often each piece of a tokenizer occurs in text, once for all sizes of a compact tokenizer."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from mindpangu.errors import DataError
from mindpangu.tensor_format import require_tensors
from mindpangu.tiny.tokenizer.documents import Document, Documents, Split
from mindpangu.tiny.verified_file import VerifiedFile
from mindpangu.tokenizer import Tokenizer
from mindpangu.untrusted import DIGEST, Count, read_record

_BATCH_SIZE = 1 << 20  # characters of text that are tokenized at once


@dataclass(frozen=True)
class _Header:
    """The fields of `PieceCounts` other than tensors."""

    tokenizer: Annotated[str, DIGEST]
    text: str
    train_bytes: Count
    heldout_bytes: Count


@dataclass(frozen=True, eq=False)
class PieceCounts(VerifiedFile):
    """Piece counts of the training and the held-out text.

    Attributes:
        tokenizer: digest of the tokenizer.
        text: digest of the documents and their split.
        train_V, heldout_V: int64 [V], number of occurrences of each id, without control tokens.
        train_bytes, heldout_bytes: UTF-8 bytes of the text.
    """

    kind = "piece counts"
    format_version = "2"
    error = DataError
    remedy = "choose another --counts, or remove it to count again"

    tokenizer: str
    text: str
    train_V: np.ndarray
    heldout_V: np.ndarray
    train_bytes: int
    heldout_bytes: int

    def matches(self, tokenizer: Tokenizer, documents: Documents, split: Split) -> bool:
        """True if the counts are of this tokenizer's pieces in this text and split."""
        return (self.tokenizer, self.text) == (tokenizer.digest, text_digest(documents, split))

    @classmethod
    def _from_content(cls, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> "PieceCounts":
        saved = read_record(_Header, header)
        require_tensors(tensors, {"train": ("I64", 1), "heldout": ("I64", 1)})
        if tensors["train"].shape != tensors["heldout"].shape or any((counts < 0).any() for counts in tensors.values()):
            raise ValueError("its counts are negative, or belong to two vocabularies")
        return cls(**vars(saved), train_V=tensors["train"], heldout_V=tensors["heldout"])

    def _header(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokenizer", "text", "train_bytes", "heldout_bytes")}

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"train": self.train_V, "heldout": self.heldout_V}


def count_pieces(documents: Documents, split: Split, tokenizer: Tokenizer) -> PieceCounts:
    """Tokenizes the documents and counts their pieces, streaming, with a progress bar on a terminal.

    Raises:
        DataError: the text cannot be read.
    """
    counts = {is_heldout: np.zeros(tokenizer.vocab_size, np.int64) for is_heldout in (False, True)}
    sizes = dict.fromkeys(counts, 0)
    with read_batches(documents, "counting pieces") as batches:
        for batch in batches:
            texts = [(split.is_heldout(document), text) for document in batch for text in document.texts]
            encoded = tokenizer.encode_batch([text for _, text in texts], available_cores())
            for side in counts:
                ids_of_side = [ids for (is_heldout, _), ids in zip(texts, encoded, strict=True) if is_heldout == side]
                flat_ids = np.fromiter(itertools.chain.from_iterable(ids_of_side), np.int64)
                counts[side] += np.bincount(flat_ids, minlength=tokenizer.vocab_size)
                sizes[side] += sum(len(text.encode("utf-8")) for is_heldout, text in texts if is_heldout == side)
    text = text_digest(documents, split)
    return PieceCounts(tokenizer.digest, text, counts[False], counts[True], sizes[False], sizes[True])


def text_digest(documents: Documents, split: Split) -> str:
    """Returns the digest of documents and their split, as in `PieceCounts.text`."""
    return f"{documents.digest} {split.digest}"


@contextmanager
def read_batches(documents: Documents, label: str) -> Iterator[Iterator[list[Document]]]:
    """Yields an iterator over the documents in batches of about a million characters, with a progress bar."""

    def batches() -> Iterator[list[Document]]:
        batch: list[Document] = []
        size = 0
        for document in documents:
            batch.append(document)
            size += sum(map(len, document.texts))
            if size >= _BATCH_SIZE:
                yield batch
                batch = []
                size = 0
                bar.update(documents.bytes_read - bar.n)
        if batch:
            yield batch
        bar.update(documents.bytes_read - bar.n)

    with tqdm(total=documents.total_bytes, unit="B", unit_scale=True, desc=label, disable=None) as bar:
        yield batches()


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
