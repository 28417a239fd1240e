"""Reads and writes safetensors files one tensor at a time.

The library reads and writes whole files, or maps them, which also counts as memory. But a file can be larger than the
memory of a machine that only copies it. `tensor_format.py` defines the format.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.manifest import REMEDY
from mindpangu.errors import CheckpointError
from mindpangu.files import CHUNK_BYTES, Buffer
from mindpangu.tensor_format import LENGTH, TensorInfo, decode, dtype_name, read_header
from mindpangu.untrusted import open_file

__all__ = ["TensorFile", "TensorInfo", "chunks_of", "decode_file", "decode_tensors", "encode_stream"]

_ALIGNMENT = 8
_REMEDY = "use another checkpoint, or copy this one again"


class TensorFile:
    """A safetensors file open for reading; only its header is kept in memory.

    Attributes:
        path: the file.
        metadata: the header's strings other than the descriptions of tensors.
        tensors: name → dtype and shape, in the order of the file.

    Raises:
        CheckpointError: the file is missing, or its header is incomplete or does not match its size.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open_file(path) as file:
                header = read_header(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a complete safetensors file: {error}; it is cut off or damaged: {_REMEDY}"
            ) from None
        self.metadata = header.metadata
        self.tensors = header.tensors
        self._offsets = header.offsets

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor. Raises CheckpointError if the file has been truncated meanwhile."""
        info = self.tensors[name]
        start, _ = self._offsets[name]
        values = np.empty(info.shape, info.dtype)
        content = values.data.cast("B") if values.size else bytearray()
        with open_file(self.path) as file:
            file.seek(start)
            num_bytes = file.readinto(content)  # type: ignore[attr-defined]
        if num_bytes < values.nbytes:
            raise self._cut_off(name)
        return values

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the bytes of one tensor in pieces. Raises like `read`."""
        start, stop = self._offsets[name]
        with open_file(self.path) as file:
            file.seek(start)
            for offset in range(start, stop, CHUNK_BYTES):
                piece = file.read(min(CHUNK_BYTES, stop - offset))
                if len(piece) < min(CHUNK_BYTES, stop - offset):
                    raise self._cut_off(name)
                yield piece

    def _cut_off(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path} ends inside {name}: it was truncated while it was being read; {_REMEDY}")


def decode_tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Decodes the tensors of a safetensors file. Raises CheckpointError, which names `path`, if it is not one."""
    return decode_file(path, data)[1]


def decode_file(path: Path, data: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Decodes the metadata and the tensors, all float32, of a safetensors file. Raises like `decode_tensors`."""
    try:
        metadata, tensors = decode(data)
        for name, values in tensors.items():
            if values.dtype != np.float32:
                raise ValueError(f"tensor {name} is {values.dtype}; allowed: float32")
    except ValueError as error:
        raise CheckpointError(f"{path} is not a safetensors file of a checkpoint: {error}; {REMEDY}") from None
    return metadata, tensors


def encode_stream(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], chunks: Callable[[str], Iterable[Buffer]]
) -> Iterator[Buffer]:
    """Yields a safetensors file in pieces.

    Args:
        tensors: dtypes and shapes of its tensors, in the order of the file.
        metadata: strings for the header.
        chunks: returns the bytes of a tensor in pieces; called for one tensor after another.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, info in tensors.items():
        stop = start + info.num_bytes
        header[name] = {"dtype": dtype_name(info.dtype), "shape": list(info.shape), "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield LENGTH.pack(len(encoded)) + encoded
    for name in tensors:
        yield from chunks(name)


def chunks_of(values: np.ndarray) -> Iterator[memoryview]:
    """Yields the bytes of an array in memory, for `encode_stream`."""
    yield np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
