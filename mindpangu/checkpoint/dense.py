"""The dense files of a checkpoint: assembles whole tensors, whichever ranks wrote which slices."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.config import Config
from mindpangu.display import short_text
from mindpangu.errors import CheckpointError
from mindpangu.model.coupling import parameter_shape
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.untrusted import TensorName, parse_json, read_record

_SLICES = "parts"  # the metadata's key; the format is older than the name
_REMEDY = "copy the checkpoint again, or use another"


@dataclass(frozen=True)
class _Slices:
    """The description of the slices in the metadata of a dense file."""

    format_version: Literal[1]
    tensors: dict[TensorName, Any]


def dense_header(slices: Mapping[str, TensorSlice]) -> dict[str, str]:
    """Returns the metadata of a dense file, which describes the slices that are not whole tensors.

    Args:
        slices: name → slice, for every tensor in the file.
    """
    described = {name: held.describe() for name, held in slices.items() if not held.is_whole}
    # one entry, because safetensors writes several in any order: equal tensors must give equal files
    if described:
        return {_SLICES: json.dumps({"format_version": 1, "tensors": described}, sort_keys=True)}
    return {"format_version": "1"}


def slices_in(path: Path, metadata: Mapping[str, str]) -> dict[str, TensorSlice]:
    """Returns name → slice for those tensors of a dense file that are not whole.

    Raises:
        CheckpointError: the metadata of the file at `path` is not valid.
    """
    try:
        described = metadata.get(_SLICES)
        if described is None:
            return {}
        content = read_record(_Slices, parse_json(described), _SLICES)
        return {name: TensorSlice.read(entry, f"{_SLICES}.tensors.{name}") for name, entry in content.tensors.items()}
    except ValueError as error:
        raise CheckpointError(f"{path} does not describe its slices of the tensors: {error}; {_REMEDY}") from None


def dense_files(reader: CheckpointReader) -> list[str]:
    """Lists the names of a checkpoint's dense files."""
    return sorted(name for name in reader.files if name.startswith("dense_"))


class DenseFiles:
    """All dense files of a checkpoint, verified when they are opened; tensors are read one at a time.

    Attributes:
        shapes: name → shape of the whole tensor: parameters ("blocks.0.ffn.up.weight") and their Adam moments
            ("adam_m.…", "adam_v.…").

    Args:
        config: configuration of the model whose parameters these must be; None to accept any tensors.

    Raises:
        CheckpointError: a file is missing, damaged, or altered, or holds a tensor that the model lacks.
    """

    def __init__(self, reader: CheckpointReader, config: Config | None = None):
        self._folder = reader.folder
        self._slices: dict[str, list[tuple[TensorFile, TensorSlice]]] = {}
        for name in dense_files(reader):
            file = TensorFile(reader.verify(name))
            described = slices_in(file.path, file.metadata)
            for tensor, info in file.tensors.items():
                held = described.get(tensor, TensorSlice(info.shape))
                if info.dtype != np.float32 or held.local_shape != info.shape:
                    raise CheckpointError(
                        f"{file.path}: {tensor} is {info.dtype} of shape {list(info.shape)}, but the header describes "
                        f"{held.size:,} elements of float32; {_REMEDY}"
                    )
                self._slices.setdefault(tensor, []).append((file, held))
        self.shapes = {tensor: slices[0][1].shape for tensor, slices in self._slices.items()}
        for tensor, slices in self._slices.items():  # before any memory is allocated for the whole tensor
            shape = self.shapes[tensor]
            num_elements = sum(held.size for _, held in slices)
            if any(held.shape != shape for _, held in slices) or num_elements != math.prod(shape):
                raise CheckpointError(
                    f"{reader.folder}: the slices of {tensor} in its dense files do not add up to a tensor of shape "
                    f"{list(shape)}; {_REMEDY}"
                )
        if config is not None:
            for tensor, shape in self.shapes.items():
                _require_parameter(reader, config, tensor, shape)

    def read(self, name: str) -> np.ndarray:
        """Reads one whole tensor as float32.

        Raises:
            CheckpointError: no tensor has this name, or the files do not hold all of it.
        """
        slices = self._slices.get(name, [])
        if len(slices) == 1:  # it has all elements
            return slices[0][0].read(name)
        whole = np.zeros(self.shapes.get(name, ()), np.float32)
        for file, held in slices:
            held.put(file.read(name), whole)
        # if slices overlap, others are missing, though the numbers add up
        if not TensorSlice(whole.shape).is_covered_by([held for _, held in slices]):
            raise CheckpointError(f"{self._folder}: its dense files have no tensor {name!r}, or not all of it")
        return whole


def _require_parameter(reader: CheckpointReader, config: Config, tensor: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError unless a tensor is a parameter of the model or a moment of one, in the right shape."""
    try:
        needed = parameter_shape(config, tensor.removeprefix("adam_m.").removeprefix("adam_v."))
    except ValueError:
        raise CheckpointError(
            f"{reader.folder} has the tensor {short_text(tensor)}, which its model lacks; {_REMEDY}"
        ) from None
    if shape != needed:
        raise CheckpointError(
            f"{reader.folder}: {tensor} has shape {list(shape)}, the model needs {list(needed)}; {_REMEDY}"
        )
