"""The file of one expert: weights, Adam moments, and a header that says whose they are.

Named by layer, domain and index *inside the domain's group*, never by a global number: adding or removing a domain
renames nobody, and a sub-model is made of the files themselves.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint.reader import decode_tensors
from mindpangu.errors import CheckpointError

FORMAT_VERSION = 1
_HEADER = "expert"


@dataclass(frozen=True)
class ExpertFile:
    """What an expert file says of itself, beside the tensors' names, shapes and dtypes.

    Attributes:
        layer: index among the RRE layers, from the bottom. domain: its domain's name. index: inside the group.
        step_count: how often the expert was updated.
        table: digest of the domain's routing table. tokenizer: digest of the tokenizer that made the tokens.
        part: (number, of how many): ranks that share an expert write a file each, of a part of every tensor.
    """

    layer: int
    domain: str
    index: int
    step_count: int
    table: str
    tokenizer: str
    format_version: int = FORMAT_VERSION
    part: tuple[int, int] = (0, 1)

    @property
    def name(self) -> str:
        return expert_file_name(self.layer, self.domain, self.index, self.part)

    def encode(self, tensors: Mapping[str, np.ndarray]) -> bytes:
        return encode_tensors(dict(tensors), metadata=self.metadata)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file carries beside its tensors."""
        header = asdict(self)
        if self.part == (0, 1):
            del header["part"]
        # one entry, because safetensors writes several in any order: equal experts are equal files
        return {_HEADER: json.dumps(header, sort_keys=True)}

    @staticmethod
    def decode(path: Path, data: bytes) -> tuple["ExpertFile", dict[str, np.ndarray]]:
        """The header and the tensors. Raises CheckpointError if the file is not a whole expert file."""
        tensors = decode_tensors(path, data)
        return ExpertFile.from_metadata(path, read_metadata(data)), tensors

    @staticmethod
    def from_metadata(path: Path, metadata: Mapping[str, str]) -> "ExpertFile":
        """What a file's metadata says. Raises CheckpointError if it is not that of an expert."""
        try:
            header = ExpertFile(**json.loads(metadata[_HEADER]))
            header = replace(header, part=tuple(header.part))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} has no valid expert header: {error}") from None
        if header.format_version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has expert format {header.format_version}; this version reads 1")
        return header


def expert_file_name(layer: int, domain: str, index: int, part: tuple[int, int] = (0, 1)) -> str:
    """The file of an expert, or of a part of one."""
    stem = f"experts/rre_{layer:02d}.{domain}.{index:03d}"
    return f"{stem}.safetensors" if part == (0, 1) else f"{stem}.{part[0]}_of_{part[1]}.safetensors"


def parts_of_experts(files: Iterable[str]) -> dict[tuple[int, str, int], int]:
    """(layer, domain, index) of every expert among the files of a checkpoint → in how many files it is."""
    found = {}
    for name in files:
        match = re.fullmatch(r"experts/rre_(\d+)\.([\w-]+)\.(\d+)(?:\.\d+_of_(\d+))?\.safetensors", name)
        if match:
            found[int(match[1]), match[2], int(match[3])] = int(match[4] or 1)
    return found


def read_metadata(data: bytes) -> dict[str, Any]:
    """Of a safetensors file: 8 bytes of header length, then JSON. The library reads it only from files on disk."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})
