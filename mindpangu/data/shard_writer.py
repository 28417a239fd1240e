"""Writing token shards: tokenizes a corpus, streaming. What the files are is in `shards.py`."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindpangu.data.corpus import CorpusReader, Record
from mindpangu.data.formats import encode_documents
from mindpangu.data.instruction import encode_samples
from mindpangu.data.shards import FORMAT_VERSION, INDEX, RECORDS_VERSION, TokenShards, mask_name, shard_name
from mindpangu.data.split import SPLITS, HeldoutSplit
from mindpangu.errors import DataError
from mindpangu.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20  # text that is tokenized at once


def write_shards(folder: Path, reader: CorpusReader, split: HeldoutSplit, tokenizer: Tokenizer) -> TokenShards:
    """Tokenizes the corpus into `folder`, streaming, with a progress bar on a terminal.

    Args:
        folder: created if it is not there; files of the same names are replaced.
        reader: the corpus; its `report` then tells what was read.
        split: of the same corpus (`split_corpus`).
        tokenizer: of every domain of the run.

    Raises:
        DataError: too many bad records, or a vocabulary with a tokenizer of its own.
        TokenizerError: the tokenizer lacks a domain's control token.
    """
    for vocabulary in reader.config.domains.vocabularies:
        if vocabulary.tokenizer:
            raise DataError(
                f"vocabulary {vocabulary.name!r} has the tokenizer {vocabulary.tokenizer}, but all shards of a folder "
                'are written with one tokenizer; set its tokenizer to "" (the run\'s own)'
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # while files change, the folder is not a set of shards
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    names = [domain.name for domain in reader.domains]
    seq_length, has_records = reader.config.model.seq_length, reader.config.data.format == "instruction"
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=reader.total_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None)
        )
        files = {
            (name, part): stack.enter_context((_RecordFile if has_records else _ShardFile)(folder, name, part, dtype))
            for name in names
            for part in SPLITS
        }
        for records in _batches(reader):
            parts = [record.parts for record in records]
            if has_records:
                documents = encode_samples(parts, tokenizer, seq_length, _available_cores())
            else:
                documents = [(ids,) for ids in encode_documents(parts, tokenizer, _available_cores())]
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
        "files": {name: {part: files[name, part].entry() for part in SPLITS} for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return TokenShards.open(folder)


class _HashedFile:
    """A file while it is written; hashes what passes through."""

    def __init__(self, path: Path):
        self._path, self.digest = path, hashlib.blake2b(digest_size=16)

    def __enter__(self) -> "_HashedFile":
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self.digest.update(raw)


class _ShardFile:
    """A shard while it is written."""

    def __init__(self, folder: Path, name: str, part: str, dtype: str):
        self._dtype, self._ids = np.dtype(dtype).newbyteorder("<"), _HashedFile(folder / shard_name(name, part))
        self._tokens = self._documents = self._text_bytes = 0

    def __enter__(self) -> "_ShardFile":
        self._ids.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.__exit__(*error)

    def append(self, text_bytes: int, ids: Sequence[int]) -> None:
        self._ids.write(np.array(ids, self._dtype).tobytes())
        self._tokens += len(ids)
        self._documents += 1
        self._text_bytes += text_bytes

    def entry(self) -> dict[str, Any]:
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "blake2b": self._ids.digest.hexdigest(),
        }


class _RecordFile(_ShardFile):
    """A shard of instruction records, and its mask."""

    def __init__(self, folder: Path, name: str, part: str, dtype: str):
        super().__init__(folder, name, part, dtype)
        self._mask = _HashedFile(folder / mask_name(name, part))
        self._counted = self._shortened = 0

    def __enter__(self) -> "_RecordFile":
        super().__enter__()
        self._mask.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._mask.__exit__(*error)

    def append(self, text_bytes: int, ids: np.ndarray, counted: np.ndarray, shortened: bool) -> None:
        super().append(text_bytes, ids)
        self._mask.write(counted.tobytes())
        self._counted += int(counted.sum())
        self._shortened += shortened

    def entry(self) -> dict[str, Any]:
        return super().entry() | {
            "mask_blake2b": self._mask.digest.hexdigest(),
            "counted": self._counted,
            "shortened": self._shortened,
        }


def _batches(reader: CorpusReader) -> Iterator[list[Record]]:
    batch, size = [], 0
    for record in reader:
        batch.append(record)
        size += record.text_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _available_cores() -> int:
    """Cores this process may use; taskset and containers can grant fewer than the machine has."""
    return len(os.sched_getaffinity(0))
