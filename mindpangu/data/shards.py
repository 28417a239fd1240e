"""Token shards: the tokenized corpus on disk, one file of raw ids per domain and split.

    {domain}.{train|heldout}.bin   little-endian uint16, or int32 if the vocabulary is larger than 65,536
    index.json                     descriptions and hashes of the files; written last

If data.format is text, a file is the concatenation of the domain's documents in the order of the corpus, independent of
the sequence length. `packing.py` cuts samples from it, and `loader.py` orders them. If data.format is instruction,
every record takes model.seq_length + 1 ids, and there is a second file per split:

    {domain}.{train|heldout}.mask.bin   uint8, 1 for the ids that count in the loss
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from mindpangu.data.samples import Samples
from mindpangu.data.split import SPLITS
from mindpangu.display import describe_error, short_repr
from mindpangu.errors import DataError
from mindpangu.files import file_chunks, read_json
from mindpangu.tokenizer import Tokenizer
from mindpangu.untrusted import DIGEST, Count, DomainName, Range, inside, open_file, read_record

FORMAT_VERSION = 1  # of text
RECORDS_VERSION = 2  # of instruction records
INDEX = "index.json"

_CHUNK_TOKENS = 1 << 22  # number of tokens counted at once
_REMEDY = "prepare the data again (`mindpangu data prepare`)"

_TokenCount = Annotated[int, Range(0, 1 << 48)]
_TokenId = Annotated[int, Range(0, (1 << 31) - 1)]


@dataclass(frozen=True)
class _Split:
    """The entry of one split of a domain in index.json. Only instruction records have the last three fields."""

    tokens: _TokenCount
    documents: Count
    text_bytes: Count
    blake2b: Annotated[str, DIGEST]
    counted: Count | None = None
    shortened: Count | None = None
    mask_blake2b: Annotated[str, DIGEST] | None = None


@dataclass(frozen=True)
class _Index:
    """The content of index.json."""

    format_version: Literal[1, 2]
    dtype: Literal["uint16", "int32"]
    vocab_size: Annotated[int, Range(1, 1 << 31)]
    pad_id: _TokenId
    eot_id: _TokenId
    tokenizer_digest: Annotated[str, DIGEST]
    domain_names: list[DomainName]
    files: dict[DomainName, dict[Literal["train", "heldout"], _Split]]
    seq_length: Annotated[int, Range(1, 1 << 31)] | None = None

    def __post_init__(self) -> None:
        if len(set(self.domain_names)) != len(self.domain_names) or set(self.domain_names) != set(self.files):
            raise ValueError(f"domain_names are {short_repr(self.domain_names)}; allowed: the keys of files, each once")
        if max(self.pad_id, self.eot_id) >= self.vocab_size:
            raise ValueError(
                f"pad_id is {self.pad_id} and eot_id {self.eot_id}; allowed: < {self.vocab_size} (vocab_size)"
            )
        for name, splits in self.files.items():
            for split in SPLITS:
                if split not in splits:
                    raise ValueError(f"files.{name}.{split} is missing")
        if self.format_version == RECORDS_VERSION:
            entries = [entry for splits in self.files.values() for entry in splits.values()]
            if self.seq_length is None:
                raise ValueError("seq_length is missing")
            if any(None in (entry.counted, entry.shortened, entry.mask_blake2b) for entry in entries):
                raise ValueError("counted, shortened, or mask_blake2b is missing in an entry of files")


class TokenShards:
    """A folder of shards, opened for reading with `open`.

    Attributes:
        folder: the folder.
        domain_names: names of the domains in the order of their ids.
        vocab_size, pad_id, eot_id, tokenizer_digest: properties of the tokenizer that encoded the text.
        has_records: True if the shards hold instruction records (for one sequence length), False if they hold text.
        digest: hex hash of the index and thus, through the hashes in it, of all tokens.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.domain_names: tuple[str, ...] = tuple(index["domain_names"])
        self.vocab_size: int = index["vocab_size"]
        self.pad_id: int = index["pad_id"]
        self.eot_id: int = index["eot_id"]
        self.tokenizer_digest: str = index["tokenizer_digest"]
        self.has_records = index["format_version"] == RECORDS_VERSION
        self._seq_length: int | None = index.get("seq_length")
        self.digest = hashlib.blake2b(json.dumps(index, sort_keys=True).encode("ascii"), digest_size=16).hexdigest()
        self._dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._files: dict[str, dict[str, dict[str, Any]]] = index["files"]

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> "TokenShards":
        """Opens a folder of shards and checks every file's size against the index.

        Args:
            folder: a folder that `write_shards` wrote.
            verify: True to also read every file, compare its hash, and check that its ids are in the vocabulary.

        Raises:
            DataError: shards are missing or altered, or have another format version. The message names the file, the
                expected value, and the actual one.
        """
        folder = Path(folder)
        shards = cls(folder, _read_index(folder / INDEX))
        for name in shards.domain_names:
            for split in SPLITS:
                shards._check_file(name, split, verify)
        return shards

    def tokens(self, domain_name: str, split: str) -> np.ndarray:
        """Returns all token ids of a domain's split, read-only: uint16 or int32 [number of tokens]."""
        return _mapped(self.folder, shard_name(domain_name, split), self._dtype)

    def text_tokens(self, domain_name: str, split: str) -> np.ndarray:
        """Returns `tokens` without the padding of records."""
        tokens = self.tokens(domain_name, split)
        return tokens[tokens != self.pad_id] if self.has_records else tokens

    def samples(self, domain_name: str, split: str, seq_length: int) -> Samples:
        """Returns the samples of a domain's split. There may be none.

        Raises:
            DataError: the shards hold records for another sequence length.
        """
        # a plain view of the memory map: slicing np.memmap itself costs more than copying a sample
        tokens = np.asarray(self.tokens(domain_name, split))
        if not self.has_records:
            return Samples(tokens, seq_length)
        if seq_length != self._seq_length:
            raise DataError(
                f"the records in {self.folder} are samples of model.seq_length {self._seq_length}, not {seq_length}; "
                f"{_REMEDY}"
            )
        counted = _mapped(self.folder, mask_name(domain_name, split), np.dtype(np.uint8))
        return Samples(tokens, seq_length, np.asarray(counted))

    def num_tokens(self, domain_name: str, split: str) -> int:
        """Returns the number of tokens in a domain's split, including control tokens."""
        return self._files[domain_name][split]["tokens"]

    def num_documents(self, domain_name: str, split: str) -> int:
        """Returns the number of documents in a domain's split: one per record, each ended by `<eot>`."""
        return self._files[domain_name][split]["documents"]

    def num_answers(self, domain_name: str, split: str) -> tuple[int, int]:
        """Returns (number of tokens that count in the loss, number of shortened records), for records only."""
        entry = self._files[domain_name][split]
        return entry["counted"], entry["shortened"]

    def text_bytes(self, domain_name: str, split: str) -> int:
        """Returns the number of UTF-8 bytes of the text in a domain's split."""
        return self._files[domain_name][split]["text_bytes"]

    def token_counts(self, domain_name: str, split: str, vocab_size: int) -> npt.NDArray[np.int64]:
        """Counts each id in a domain's split, without the padding of records: int64 [V]. Reads in chunks.

        Raises:
            DataError: an id is not below `vocab_size`.
        """
        counts_V = np.zeros(vocab_size, np.int64)
        tokens = self.tokens(domain_name, split)
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = np.asarray(tokens[start : start + _CHUNK_TOKENS])
            if wrong := _outside(chunk, vocab_size):
                raise DataError(
                    f"{self.folder / shard_name(domain_name, split)} contains token id {wrong}, outside a "
                    f"vocabulary of {vocab_size}; use the tokenizer of these shards, or {_REMEDY}"
                )
            counts_V += np.bincount(chunk, minlength=vocab_size)
        if self.has_records and self.pad_id < vocab_size:
            counts_V[self.pad_id] = 0
        return counts_V

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises DataError unless these tokens come from this tokenizer."""
        if tokenizer.digest != self.tokenizer_digest:
            raise DataError(
                f"the token shards in {self.folder} were made by another tokenizer (hash {self.tokenizer_digest}) than "
                f"the model's ({tokenizer.digest}); use the run folder of that model, or {_REMEDY}"
            )
        if tokenizer.vocab_size != self.vocab_size:
            raise DataError(
                f"{self.folder / INDEX}: vocab_size is {self.vocab_size}; allowed: {tokenizer.vocab_size}, that of its "
                f"tokenizer; {_REMEDY}"
            )

    def _check_file(self, name: str, split: str, verify: bool) -> None:
        entry = self._files[name][split]
        count = entry["tokens"]
        self._check(shard_name(name, split), count, self._dtype, self.vocab_size, entry["blake2b"], verify)
        if self.has_records:
            self._check(mask_name(name, split), count, np.dtype(np.uint8), 2, entry["mask_blake2b"], verify)

    def _check(self, name: str, count: int, dtype: np.dtype, limit: int, expected_digest: str, verify: bool) -> None:
        """Compares a file with the index: how many numbers it holds and, with `verify`, its hash and whether all
        numbers are >= 0 and below `limit`."""
        path = self.folder / name
        expected = count * dtype.itemsize
        wrong = None
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open_file(inside(self.folder, name)) as file:
                found = os.fstat(file.fileno()).st_size
                if found != expected:
                    raise DataError(f"token shard {path} has {found:,} bytes, expected {expected:,}; {_REMEDY}")
                if not verify:
                    return
                for chunk in file_chunks(file):
                    digest.update(chunk)
                    wrong = wrong or _outside(np.frombuffer(chunk, dtype), limit)
        except FileNotFoundError:
            raise DataError(f"token shard {path} is missing; {_REMEDY}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"token shard {path} cannot be read: {describe_error(error)}; {_REMEDY}") from None
        if digest.hexdigest() != expected_digest:
            raise DataError(
                f"token shard {path} was altered: its hash is {digest.hexdigest()}, expected {expected_digest}; "
                f"{_REMEDY}"
            )
        if wrong is not None:
            raise DataError(f"token shard {path} contains {wrong}; allowed: >= 0 and < {limit}; {_REMEDY}")


def _outside(numbers: np.ndarray, limit: int) -> int | None:
    """Returns an integer that is negative or not below the limit, or None if there is none."""
    if not numbers.size:
        return None
    lowest = int(numbers.min()) if numbers.dtype.kind == "i" else 0
    highest = int(numbers.max())
    return lowest if lowest < 0 else highest if highest >= limit else None


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = read_json(path)
        version = index.get("format_version") if isinstance(index, dict) else None
        if type(version) is not int or version in (FORMAT_VERSION, RECORDS_VERSION):
            read_record(_Index, index)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, so there are no token shards in {path.parent}; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {describe_error(error)}; {_REMEDY}") from None
    if version not in (FORMAT_VERSION, RECORDS_VERSION):
        raise DataError(
            f"{path} has format version {short_repr(version)}, expected {FORMAT_VERSION} (text) or {RECORDS_VERSION} "
            f"(records); {_REMEDY}"
        )
    return index


def shard_name(domain_name: str, split: str) -> str:
    """Returns the file name of a domain's tokens."""
    return f"{domain_name}.{split}.bin"


def mask_name(domain_name: str, split: str) -> str:
    """Returns the file name of the mask of a domain's records."""
    return f"{domain_name}.{split}.mask.bin"


def _mapped(folder: Path, name: str, dtype: np.dtype) -> np.ndarray:
    """Maps a file read-only. An empty file, which cannot be mapped, gives an empty array."""
    try:
        with open_file(inside(folder, name)) as file:
            size = os.fstat(file.fileno()).st_size
            return np.memmap(file, dtype=dtype, mode="r") if size else np.zeros(0, dtype)  # type: ignore[call-overload]
    except (OSError, ValueError) as error:
        raise DataError(f"token shard {folder / name} cannot be read: {describe_error(error)}; {_REMEDY}") from None
