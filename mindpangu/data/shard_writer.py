"""Tokenizes a corpus as a stream and writes token shards. `shards.py` describes their format."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mindpangu.data.corpus import CorpusReader, Record
from mindpangu.data.formats import encode_documents
from mindpangu.data.instruction import encode_samples
from mindpangu.data.shards import FORMAT_VERSION, INDEX, RECORDS_VERSION, TokenShards, mask_name, shard_name
from mindpangu.data.split import SPLITS, HeldoutSplit
from mindpangu.errors import DataError
from mindpangu.files import encode_json, write_bytes_atomically
from mindpangu.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20  # text that is tokenized at once

_Document = tuple[Sequence[int] | npt.NDArray[np.int32], npt.NDArray[np.uint8] | None, bool]
"""(token ids; for records, the mask of the ids that count; whether the record was shortened)"""


def write_shards(folder: Path, reader: CorpusReader, split: HeldoutSplit, tokenizer: Tokenizer) -> TokenShards:
    """Tokenizes the corpus into `folder` as a stream, with a progress bar on a terminal.

    Args:
        folder: created if necessary; existing shards are replaced.
        reader: the corpus. Its `report` is complete afterwards.
        split: the split of the same corpus (`split_corpus`).
        tokenizer: the tokenizer of every domain of the run.

    Raises:
        DataError: there are too many bad records, or a vocabulary has a tokenizer of its own.
        TokenizerError: the tokenizer lacks a domain's control token.
    """
    for vocabulary in reader.config.domains.vocabularies:
        if vocabulary.tokenizer:
            raise DataError(
                f"vocabulary {vocabulary.name!r} has the tokenizer {vocabulary.tokenizer}, but all shards of a folder "
                'are written with one tokenizer; set its tokenizer to "" (the run\'s own)'
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # without an index, a folder with unfinished files cannot be opened
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    names = [domain.name for domain in reader.domains]
    seq_length = reader.config.model.seq_length
    has_records = reader.config.data.format == "instruction"
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=reader.total_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None)
        )
        files = {
            (name, side): stack.enter_context(_ShardFile(folder, name, side, dtype, has_records))
            for name in names
            for side in SPLITS
        }
        for records in _batches(reader):
            parts = [record.parts for record in records]
            documents: Sequence[_Document]
            if has_records:
                documents = encode_samples(parts, tokenizer, seq_length, _available_cores())
            else:
                documents = [(ids, None, False) for ids in encode_documents(parts, tokenizer, _available_cores())]
            for record, document in zip(records, documents, strict=True):
                files[names[record.domain_id], split.side_of(record)].append(record.text_bytes, *document)
            bar.update(reader.bytes_read - bar.n)
    index = {
        "format_version": RECORDS_VERSION if has_records else FORMAT_VERSION,
        **({"seq_length": seq_length} if has_records else {}),
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eot_id": tokenizer.eot_id,
        "tokenizer_digest": tokenizer.digest,
        "domain_names": names,
        "files": {name: {side: files[name, side].entry() for side in SPLITS} for name in names},
    }
    write_bytes_atomically(folder / INDEX, encode_json(index))
    return TokenShards.open(folder)


class _HashedFile:
    """An open file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> "_HashedFile":
        self._path.unlink(missing_ok=True)  # a file that exists may have other names (hard links) in other runs
        self._file = open(self._path, "xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self.digest.update(raw)


class _ShardFile:
    """An open shard and, for records, its mask file."""

    def __init__(self, folder: Path, name: str, side: str, dtype: str, has_records: bool) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._ids = _HashedFile(folder / shard_name(name, side))
        self._mask = _HashedFile(folder / mask_name(name, side)) if has_records else None
        self._tokens = 0
        self._documents = 0
        self._text_bytes = 0
        self._counted = 0
        self._shortened = 0

    def __enter__(self) -> "_ShardFile":
        self._ids.__enter__()
        if self._mask is not None:
            self._mask.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.__exit__(*error)
        if self._mask is not None:
            self._mask.__exit__(*error)

    def append(
        self,
        text_bytes: int,
        ids: Sequence[int] | npt.NDArray[np.int32],
        counted: npt.NDArray[np.uint8] | None,
        shortened: bool,
    ) -> None:
        self._ids.write(np.array(ids, self._dtype).tobytes())
        self._tokens += len(ids)
        self._documents += 1
        self._text_bytes += text_bytes
        if self._mask is not None and counted is not None:
            self._mask.write(counted.tobytes())
            self._counted += int(counted.sum())
            self._shortened += shortened

    def entry(self) -> dict[str, Any]:
        """Returns the shard's entry in the index."""
        entry = {
            "tokens": self._tokens,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "blake2b": self._ids.digest.hexdigest(),
        }
        if self._mask is None:
            return entry
        return entry | {
            "mask_blake2b": self._mask.digest.hexdigest(),
            "counted": self._counted,
            "shortened": self._shortened,
        }


def _batches(reader: CorpusReader) -> Iterator[list[Record]]:
    batch: list[Record] = []
    num_bytes = 0
    for record in reader:
        batch.append(record)
        num_bytes += record.text_bytes
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch = []
            num_bytes = 0
    if batch:
        yield batch


def _available_cores() -> int:
    """Returns the number of cores that this process may use, which taskset and containers can limit."""
    return len(os.sched_getaffinity(0))
