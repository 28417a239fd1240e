"""How often each piece of a tokenizer occurs in text, counted once for every size of a compact tokenizer."""

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mindpangu.errors import DataError
from mindpangu.tiny.tokenizer.documents import Document, Documents, Split
from mindpangu.tiny.verified_file import VerifiedFile
from mindpangu.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20  # text that is tokenized at once


@dataclass(frozen=True, eq=False)
class PieceCounts(VerifiedFile):
    """Counts of both sides of the split.

    Attributes:
        tokenizer: digest of the tokenizer. text: hash of the documents and of their split.
        train_V, heldout_V: int64 [V], how often each id occurs. Control tokens are none of the text.
        train_bytes, heldout_bytes: UTF-8 bytes of the text.
    """

    kind, format_version, error = "piece counts", "2", DataError
    remedy = "choose another --counts, or remove it to count again"

    tokenizer: str
    text: str
    train_V: np.ndarray
    heldout_V: np.ndarray
    train_bytes: int
    heldout_bytes: int

    def is_of(self, tokenizer: Tokenizer, documents: Documents, split: Split) -> bool:
        """Whether these pieces were counted, in this text."""
        return (self.tokenizer, self.text) == (tokenizer.digest, text_digest(documents, split))

    @classmethod
    def _of(cls, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> "PieceCounts":
        return cls(**header, train_V=tensors["train"], heldout_V=tensors["heldout"])

    def _header(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokenizer", "text", "train_bytes", "heldout_bytes")}

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"train": self.train_V, "heldout": self.heldout_V}


def count_pieces(documents: Documents, split: Split, tokenizer: Tokenizer) -> PieceCounts:
    """Tokenizes the documents, streaming, with a progress bar on a terminal.

    Raises:
        DataError: text that cannot be read.
    """
    counts = {is_heldout: np.zeros(tokenizer.vocab_size, np.int64) for is_heldout in (False, True)}
    sizes = dict.fromkeys(counts, 0)
    with reading(documents, "counting pieces") as read:
        for batch in read:
            texts = [(split.holds_out(document), text) for document in batch for text in document.texts]
            encoded = tokenizer.encode_batch([text for _, text in texts], available_cores())
            for side in counts:
                ids = [ids for (is_heldout, _), ids in zip(texts, encoded, strict=True) if is_heldout == side]
                flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
                counts[side] += np.bincount(flat, minlength=tokenizer.vocab_size)
                sizes[side] += sum(len(text.encode("utf-8")) for is_heldout, text in texts if is_heldout == side)
    text = text_digest(documents, split)
    return PieceCounts(tokenizer.digest, text, counts[False], counts[True], sizes[False], sizes[True])


def text_digest(documents: Documents, split: Split) -> str:
    """What `PieceCounts.text` says of documents and their split."""
    return f"{documents.digest} {split.digest}"


@contextmanager
def reading(documents: Documents, label: str) -> Iterator[Iterator[list[Document]]]:
    """Yields the documents in batches of about a megabyte, under a progress bar."""

    def batches() -> Iterator[list[Document]]:
        batch, size = [], 0
        for document in documents:
            batch.append(document)
            size += sum(map(len, document.texts))
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
                bar.update(documents.bytes_read - bar.n)
        if batch:
            yield batch
        bar.update(documents.bytes_read - bar.n)

    with tqdm(total=documents.total_bytes, unit="B", unit_scale=True, desc=label, disable=None) as bar:
        yield batches()


def available_cores() -> int:
    return len(os.sched_getaffinity(0))
