"""Token shards: the tokenized corpus on disk, one file of raw ids for each domain and split.

    {domain}.{train|heldout}.bin   little-endian uint16, or int32 if the vocabulary is larger than 65,536
    index.json                     what the files hold, and their hashes; written last

A file is the concatenation of the domain's documents in the order of the corpus, whatever the sequence length will be;
samples are cut out of it by `packing.py` and ordered by `loader.py`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mindpangu.data.corpus import CorpusReader, Record
from mindpangu.data.formats import encode_documents
from mindpangu.data.split import SPLITS, HeldoutSplit
from mindpangu.errors import DataError
from mindpangu.tokenizer import Tokenizer

FORMAT_VERSION = 1
INDEX = "index.json"

_BATCH_BYTES = 1 << 20  # text that is tokenized at once
_CHUNK_TOKENS = 1 << 22  # tokens that are counted or hashed at once
_REMEDY = "prepare the data again (`mindpangu data prepare`)"


def write_shards(folder: Path, reader: CorpusReader, split: HeldoutSplit, tokenizer: Tokenizer) -> "TokenShards":
    """Tokenizes the corpus into `folder`, streaming, with a progress bar on a terminal.

    Args:
        folder: created if it is not there; files of the same names are replaced.
        reader: the corpus; its `report` then tells what was read.
        split: of the same corpus (`split_corpus`).
        tokenizer: of every domain of the run.

    Raises:
        DataError: too many bad records, or an embedding slot with a tokenizer of its own.
        TokenizerError: the tokenizer lacks a domain's control token.
    """
    for slot in reader.config.domains.embedding_slots:
        if slot.tokenizer:
            raise DataError(
                f"embedding slot {slot.name!r} has the tokenizer {slot.tokenizer}, but all shards of a folder are "
                'written with one tokenizer; set its tokenizer to "" (the run\'s own)'
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # while files change, the folder is not a set of shards
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    names = [domain.name for domain in reader.domains]
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=reader.total_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None)
        )
        files = {
            (name, part): stack.enter_context(_ShardFile(folder / _file_name(name, part), dtype))
            for name in names
            for part in SPLITS
        }
        for records in _batches(reader):
            documents = encode_documents([record.parts for record in records], tokenizer, _available_cores())
            for record, ids in zip(records, documents, strict=True):
                files[names[record.domain_id], split.part_of(record)].append(ids, record.text_bytes)
            bar.update(reader.bytes_read - bar.n)
    index = {
        "format_version": FORMAT_VERSION,
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


class TokenShards:
    """Shards that are opened for reading. Use `open`.

    Attributes:
        folder: where they lie.
        domain_names: in the order of the domain ids.
        vocab_size, pad_id, eot_id, tokenizer_digest: of the tokenizer that made them.
        digest: hex hash over the index and so, through the hashes in it, over all tokens.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder = folder
        self.domain_names: tuple[str, ...] = tuple(index["domain_names"])
        self.vocab_size: int = index["vocab_size"]
        self.pad_id: int = index["pad_id"]
        self.eot_id: int = index["eot_id"]
        self.tokenizer_digest: str = index["tokenizer_digest"]
        self.digest = hashlib.blake2b(json.dumps(index, sort_keys=True).encode("ascii"), digest_size=16).hexdigest()
        self._dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._files: dict[str, dict[str, dict[str, Any]]] = index["files"]

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> "TokenShards":
        """Opens a folder of shards and checks that every file has the size that the index gives.

        Args:
            folder: what `write_shards` wrote.
            verify: also reads every file and compares its hash.

        Raises:
            DataError: shards are missing, of another format version, or altered; names the file, what was expected
                and what was found.
        """
        folder = Path(folder)
        index = _read_index(folder / INDEX)
        try:
            shards = cls(folder, index)
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / INDEX} lacks or garbles {error}; {_REMEDY}") from None
        for name in shards.domain_names:
            for part in SPLITS:
                shards._check_file(name, part, verify)
        return shards

    def tokens(self, domain_name: str, split: str) -> np.memmap:
        """All token ids of a domain's split, read-only: uint16 or int32 [number of tokens]."""
        return np.memmap(self.folder / _file_name(domain_name, split), dtype=self._dtype, mode="r")

    def num_tokens(self, domain_name: str, split: str) -> int:
        """Tokens of a domain's split, control tokens included."""
        return self._files[domain_name][split]["tokens"]

    def num_documents(self, domain_name: str, split: str) -> int:
        """Documents of a domain's split: one a record, each ended by `<eot>`."""
        return self._files[domain_name][split]["documents"]

    def text_bytes(self, domain_name: str, split: str) -> int:
        """UTF-8 bytes of the text that a domain's split was made from."""
        return self._files[domain_name][split]["text_bytes"]

    def token_counts(self, domain_name: str, split: str, vocab_size: int) -> npt.NDArray[np.int64]:
        """How often each id occurs in a domain's split, int64 [V]. Streamed.

        Raises:
            DataError: an id that is not below `vocab_size`.
        """
        counts_V = np.zeros(vocab_size, np.int64)
        tokens = self.tokens(domain_name, split)
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = np.bincount(tokens[start : start + _CHUNK_TOKENS], minlength=vocab_size)
            if len(chunk) > vocab_size:
                raise DataError(
                    f"{self.folder / _file_name(domain_name, split)} holds token id {len(chunk) - 1}, outside a "
                    f"vocabulary of {vocab_size}; use the tokenizer of these shards, or {_REMEDY}"
                )
            counts_V += chunk
        return counts_V

    def require_tokenizer(self, digest: str) -> None:
        """Raises DataError unless these tokens were made by the tokenizer with this digest."""
        if digest != self.tokenizer_digest:
            raise DataError(
                f"the token shards in {self.folder} were made by another tokenizer (hash {self.tokenizer_digest}) than "
                f"the model's ({digest}); take the run folder of that model, or {_REMEDY}"
            )

    def _check_file(self, name: str, part: str, verify: bool) -> None:
        path, entry = self.folder / _file_name(name, part), self._files[name][part]
        expected = entry["tokens"] * self._dtype.itemsize
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise DataError(f"token shard {path} is missing; {_REMEDY}")
        if found != expected:
            raise DataError(f"token shard {path} has {found:,} bytes, expected {expected:,}; {_REMEDY}")
        if not verify:
            return
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_TOKENS):
                digest.update(chunk)
        if digest.hexdigest() != entry["blake2b"]:
            raise DataError(
                f"token shard {path} was altered: its hash is {digest.hexdigest()}, expected {entry['blake2b']}; "
                f"{_REMEDY}"
            )


class _ShardFile:
    """A shard while it is written; hashes what passes through."""

    def __init__(self, path: Path, dtype: str):
        self._path, self._dtype = path, np.dtype(dtype).newbyteorder("<")
        self._digest = hashlib.blake2b(digest_size=16)
        self._tokens = self._documents = self._text_bytes = 0

    def __enter__(self) -> "_ShardFile":
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, ids: list[int], text_bytes: int) -> None:
        raw = np.array(ids, self._dtype).tobytes()
        self._file.write(raw)
        self._digest.update(raw)
        self._tokens += len(ids)
        self._documents += 1
        self._text_bytes += text_bytes

    def entry(self) -> dict[str, Any]:
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "blake2b": self._digest.hexdigest(),
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


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
        version = index["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, so there are no token shards in {path.parent}; {_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); {_REMEDY}") from None
    if version == FORMAT_VERSION and not _is_whole(index):
        raise DataError(f"{path} is not a whole index of token shards; {_REMEDY}")
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {version}, expected {FORMAT_VERSION}; {_REMEDY}")
    return index


def _is_whole(index: dict[str, Any]) -> bool:
    try:
        return (
            all(
                isinstance(index["files"][name][part]["tokens"], int)
                for name in index["domain_names"]
                for part in SPLITS
            )
            and {"dtype", "vocab_size", "pad_id", "eot_id", "tokenizer_digest"} <= index.keys()
        )
    except (KeyError, TypeError):
        return False


def _file_name(domain_name: str, split: str) -> str:
    return f"{domain_name}.{split}.bin"


def _available_cores() -> int:
    """Cores this process may use; taskset and containers can grant fewer than the machine has."""
    return len(os.sched_getaffinity(0))
