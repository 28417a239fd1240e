"""The file of one expert: weights, Adam moments, and a header that identifies the expert.

A file is named after layer, domain, and index *within the domain's group*, never a global index: adding or removing a
domain renames no file, and a sub-model consists of the same files.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint.manifest import EXPERT_FILE
from mindpangu.checkpoint.tensor_file import decode_file
from mindpangu.errors import CheckpointError
from mindpangu.untrusted import DIGEST, Count, DomainName, Range, parse_json, read_record

FORMAT_VERSION = 1
_HEADER = "expert"
_SHARD = "part"  # the header's key of `ExpertFile.shard`; the format is older than the name
_WHOLE = (0, 1)


@dataclass(frozen=True)
class ExpertFile:
    """Header of an expert file, without the names, shapes, and dtypes of the tensors.

    Field names are also the keys on disk, except for `shard`.

    Attributes:
        layer: index among the RRE layers, from the bottom.
        domain: name of the expert's domain.
        index: index of the expert in the domain's group.
        step_count: number of times the expert has been updated.
        table: digest of the domain's routing table.
        tokenizer: digest of the tokenizer that made the tokens.
        shard: (index, number of shards). Each rank of a tensor group writes a file with its shard of every tensor.
    """

    layer: Count
    domain: DomainName
    index: Count
    step_count: Count
    table: Annotated[str, DIGEST]
    tokenizer: Annotated[str, DIGEST]
    format_version: int = FORMAT_VERSION
    shard: tuple[Count, Annotated[int, Range(1, 1 << 16)]] = field(default=_WHOLE, metadata={"key": _SHARD})

    @property
    def name(self) -> str:
        """Name of the file in a checkpoint."""
        return expert_file_name(self.layer, self.domain, self.index, self.shard)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the safetensors file."""
        header = asdict(self)
        shard = header.pop("shard")
        if shard != _WHOLE:
            header[_SHARD] = shard
        # one entry, because safetensors writes several in any order: equal experts must give equal files
        return {_HEADER: json.dumps(header, sort_keys=True)}

    def encode(self, tensors: Mapping[str, np.ndarray]) -> bytes:
        """Encodes the file from this header and the tensors."""
        return encode_tensors(dict(tensors), metadata=self.metadata)

    @staticmethod
    def decode(path: Path, data: bytes) -> tuple["ExpertFile", dict[str, np.ndarray]]:
        """Decodes a file into its header and its tensors.

        Raises:
            CheckpointError: `data`, which was read from `path`, is not a complete expert file.
        """
        metadata, tensors = decode_file(path, data)
        return ExpertFile.from_metadata(path, metadata), tensors

    @staticmethod
    def from_metadata(path: Path, metadata: Mapping[str, str]) -> "ExpertFile":
        """Builds the header from a file's metadata. Raises CheckpointError if the file is not an expert file."""
        try:
            if _HEADER not in metadata:
                raise ValueError(f"{_HEADER} is missing")
            header = read_record(ExpertFile, parse_json(metadata[_HEADER]), _HEADER)
        except ValueError as error:
            raise CheckpointError(f"{path} has no valid expert header: {error}") from None
        if header.format_version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has expert format {header.format_version}; this version reads 1")
        return header


def expert_file_name(layer: int, domain: str, index: int, shard: tuple[int, int] = _WHOLE) -> str:
    """Returns the name of the file of an expert, or of one of its shards."""
    stem = f"experts/rre_{layer:02d}.{domain}.{index:03d}"
    return f"{stem}.safetensors" if shard == _WHOLE else f"{stem}.{shard[0]}_of_{shard[1]}.safetensors"


def shards_of_experts(files: Iterable[str]) -> dict[tuple[int, str, int], int]:
    """Returns (layer, domain, index) → number of shards for every expert among the files of a checkpoint."""
    found = {}
    for name in files:
        match = EXPERT_FILE.fullmatch(name)
        if match:
            found[int(match["layer"]), match["domain"], int(match["index"])] = int(match["shards"] or 1)
    return found
