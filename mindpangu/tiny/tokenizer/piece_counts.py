"""How often each piece of a tokenizer occurs in text, counted once for every size of a compact tokenizer."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors
from tqdm import tqdm

from mindpangu.errors import DataError
from mindpangu.tiny.tokenizer.documents import Document, Documents, Split
from mindpangu.tokenizer import Tokenizer

FORMAT_VERSION = 1

_HEADER = "piece_counts"
_BATCH_BYTES = 1 << 20  # text that is tokenized at once


@dataclass(frozen=True)
class PieceCounts:
    """Counts of both sides of the split.

    Attributes:
        tokenizer: digest of the tokenizer. text: hash of the documents and of their split.
        train_V, heldout_V: int64 [V], how often each id occurs. Control tokens are none of the text.
        train_bytes, heldout_bytes: UTF-8 bytes of the text.
    """

    tokenizer: str
    text: str
    train_V: np.ndarray
    heldout_V: np.ndarray
    train_bytes: int
    heldout_bytes: int

    def save(self, path: Path) -> None:
        """Writes a safetensors file; `path` holds all of it, or what it held before."""
        header = {"format_version": FORMAT_VERSION} | {name: getattr(self, name) for name in _IN_HEADER}
        tensors = {"train": self.train_V, "heldout": self.heldout_V}
        scratch = path.with_name(f".{path.name}.building")
        scratch.write_bytes(encode_tensors(tensors, {_HEADER: json.dumps(header, sort_keys=True)}))
        scratch.replace(path)

    def is_of(self, tokenizer: Tokenizer, documents: Documents, split: Split) -> bool:
        """Whether these pieces were counted, in this text."""
        return (self.tokenizer, self.text) == (tokenizer.digest, text_digest(documents, split))

    @classmethod
    def load(cls, path: Path) -> "PieceCounts":
        """Raises DataError for a file that is missing, damaged or of another format version."""
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                version = header.get("format_version")
                if version == FORMAT_VERSION:
                    train_V, heldout_V = (file.get_tensor(name) for name in ("train", "heldout"))
                    return cls(train_V=train_V, heldout_V=heldout_V, **{name: header[name] for name in _IN_HEADER})
        except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is no whole file of piece counts ({error}); remove it and count again") from None
        raise DataError(
            f"{path} has format {version} of piece counts; this version of mindpangu reads format {FORMAT_VERSION}: "
            "remove it and count again"
        )


_IN_HEADER = tuple(field.name for field in fields(PieceCounts) if not field.name.endswith("_V"))


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
