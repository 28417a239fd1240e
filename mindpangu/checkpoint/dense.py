"""The dense files of a checkpoint: assembles whole tensors, whichever ranks have written which parts of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.errors import CheckpointError
from mindpangu.parallel.sharding import TensorSlice

_PARTS = "parts"


def dense_header(parts: Mapping[str, TensorSlice]) -> dict[str, str]:
    """Returns the metadata of a dense file: which part it has of each tensor that is not whole.

    Args:
        parts: name → part, of all its tensors.
    """
    described = {name: part.describe() for name, part in parts.items() if not part.is_whole}
    # one entry, because safetensors writes several in any order: equal tensors are equal files
    if described:
        return {_PARTS: json.dumps({"format_version": 1, "tensors": described}, sort_keys=True)}
    return {"format_version": "1"}


def parts_in(path: Path, metadata: Mapping[str, str]) -> dict[str, TensorSlice]:
    """Returns name → part, of the tensors of a dense file that are not whole.

    Raises:
        CheckpointError: the metadata of the file at `path` does not say which parts it has.
    """
    try:
        described = metadata.get(_PARTS)
        if described is None:
            return {}
        return {name: TensorSlice.read(part) for name, part in json.loads(described)["tensors"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not say which parts of its tensors it has: {error!r}") from None


def dense_files(reader: CheckpointReader) -> list[str]:
    """Lists the names of a checkpoint's dense files."""
    return sorted(name for name in reader.files if name.startswith("dense_"))


class DenseFiles:
    """All dense files of a checkpoint, verified when they are opened; tensors are read one at a time.

    Attributes:
        shapes: name → shape of the whole tensor: parameters ("blocks.0.ffn.up.weight") and their Adam moments
            ("adam_m.…", "adam_v.…").

    Raises:
        CheckpointError: a file is missing, damaged or altered.
    """

    def __init__(self, reader: CheckpointReader):
        self._folder = reader.folder
        self._parts: dict[str, list[tuple[TensorFile, TensorSlice]]] = {}
        for name in dense_files(reader):
            file = TensorFile(reader.verify(name))
            described = parts_in(file.path, file.metadata)
            for tensor, info in file.tensors.items():
                part = described.get(tensor, TensorSlice(info.shape))
                self._parts.setdefault(tensor, []).append((file, part))
        self.shapes = {tensor: parts[0][1].shape for tensor, parts in self._parts.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads one whole tensor, float32.

        Raises:
            CheckpointError: no tensor has this name, or the files do not have all of it.
        """
        parts = self._parts.get(name, [])
        whole = np.zeros(self.shapes.get(name, ()), np.float32)
        mine = TensorSlice(whole.shape)
        if not parts or whole.size != sum(mine.copy(whole, part, file.read(name)) for file, part in parts):
            raise CheckpointError(f"{self._folder}: its dense files have no tensor {name!r}, or not all of it")
        return whole
