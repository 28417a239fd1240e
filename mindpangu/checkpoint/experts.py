"""The file of one expert: weights, Adam moments, and a header that identifies the expert.

A file is named after layer, domain, and index *within the domain's group*, never a global index: adding or removing a
domain renames no file, and a sub-model consists of the same files.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint.reader import decode_tensors
from mindpangu.errors import CheckpointError

FORMAT_VERSION = 1
_HEADER = "expert"
_SHARD = "part"  # the header's key of `ExpertFile.shard`; the format is older than the name
_WHOLE = (0, 1)
_FILE_NAME = re.compile(r"experts/rre_(\d+)\.([\w-]+)\.(\d+)(?:\.\d+_of_(\d+))?\.safetensors")


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

    layer: int
    domain: str
    index: int
    step_count: int
    table: str
    tokenizer: str
    format_version: int = FORMAT_VERSION
    shard: tuple[int, int] = _WHOLE

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
        tensors = decode_tensors(path, data)
        return ExpertFile.from_metadata(path, read_metadata(data)), tensors

    @staticmethod
    def from_metadata(path: Path, metadata: Mapping[str, str]) -> "ExpertFile":
        """Builds the header from a file's metadata. Raises CheckpointError if the file is not an expert file."""
        try:
            fields = json.loads(metadata[_HEADER])
            index, num_shards = fields.pop(_SHARD, _WHOLE)
            header = ExpertFile(**fields, shard=(index, num_shards))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
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
        match = _FILE_NAME.fullmatch(name)
        if match:
            found[int(match[1]), match[2], int(match[3])] = int(match[4] or 1)
    return found


def read_metadata(data: bytes) -> dict[str, Any]:
    """Reads the metadata of a safetensors file in memory; the library can do that only for files on disk."""
    (length,) = struct.unpack_from("<Q", data)  # a file is 8 bytes of header length, a JSON header, and the tensors
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})
