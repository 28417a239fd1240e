"""Reads and writes safetensors files one tensor at a time.

The library reads and writes whole files, or maps them, which also counts as memory. But a file can be larger than the
memory of a machine that only copies it. The format: 8 bytes of header length, a JSON header with the dtype, shape, and
offsets of each tensor, then the tensors.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindpangu.errors import CheckpointError
from mindpangu.files import CHUNK_BYTES, Buffer

_DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U16": np.uint16}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_REMEDY = "use another checkpoint, or copy this one again"


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor, as stated in the header of a file."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


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
            with open(path, "rb") as file:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            offsets = sorted((entry["data_offsets"], name) for name, entry in header.items())
            self.tensors = {
                name: TensorInfo(np.dtype(_DTYPES[header[name]["dtype"]]), tuple(header[name]["shape"]))
                for _, name in offsets
            }
            begin = _LENGTH.size + length
            self._offsets = {name: (begin + start, begin + stop) for (start, stop), name in offsets}
            for name, (start, stop) in self._offsets.items():
                if stop - start != self.tensors[name].num_bytes:
                    raise ValueError(f"tensor {name!r} has {stop - start} bytes")
            if max((stop for _, stop in self._offsets.values()), default=begin) != path.stat().st_size:
                raise ValueError("its size does not match its header")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, MemoryError, OverflowError) as error:
            raise CheckpointError(
                f"{path} is not a complete safetensors file: {error!r}; it is cut off or damaged: {_REMEDY}"
            ) from None

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        info = self.tensors[name]
        start, _ = self._offsets[name]
        values = np.empty(info.shape, info.dtype)
        with open(self.path, "rb") as file:
            file.seek(start)
            file.readinto(values.data.cast("B") if values.size else bytearray())
        return values

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the bytes of one tensor in pieces."""
        start, stop = self._offsets[name]
        with open(self.path, "rb") as file:
            file.seek(start)
            for offset in range(start, stop, CHUNK_BYTES):
                yield file.read(min(CHUNK_BYTES, stop - offset))


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
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield _LENGTH.pack(len(encoded)) + encoded
    for name in tensors:
        yield from chunks(name)


def chunks_of(values: np.ndarray) -> Iterator[memoryview]:
    """Yields the bytes of an array in memory, for `encode_stream`."""
    yield np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
