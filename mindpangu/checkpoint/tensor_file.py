"""A safetensors file, one tensor at a time.

The library reads and writes whole files, or maps them, which counts as memory as well. A file of experts or of dense
parameters can be larger than what a machine that only moves it has. The format: 8 bytes of header length, a JSON header
with each tensor's dtype, shape and place, then the tensors.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.fingerprint import CHUNK
from mindpangu.errors import CheckpointError

_DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U16": np.uint16}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_REMEDY = "take another checkpoint, or copy this one again"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class TensorFile:
    """A file that is opened for reading; nothing but its header is kept in memory.

    Attributes:
        tensors: name → dtype and shape, in the order in which they lie in the file.
        metadata: the strings that the header carries beside them.

    Raises:
        CheckpointError: it is missing, or its header is not whole or does not fit its size.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            places = sorted((entry["data_offsets"], name) for name, entry in header.items())
            self.tensors = {
                name: TensorInfo(np.dtype(_DTYPES[header[name]["dtype"]]), tuple(header[name]["shape"]))
                for _, name in places
            }
            begin = _LENGTH.size + length
            self._places = {name: (begin + start, begin + stop) for (start, stop), name in places}
            for name, (start, stop) in self._places.items():
                if stop - start != self.tensors[name].num_bytes:
                    raise ValueError(f"tensor {name!r} has {stop - start} bytes")
            if max((stop for _, stop in self._places.values()), default=begin) != path.stat().st_size:
                raise ValueError("its size is not what the header says")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, MemoryError, OverflowError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file: {error!r}; it is cut off or damaged: {_REMEDY}"
            ) from None

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        info, (start, _) = self.tensors[name], self._places[name]
        values = np.empty(info.shape, info.dtype)
        with open(self.path, "rb") as file:
            file.seek(start)
            file.readinto(memoryview(values).cast("B") if values.size else bytearray())
        return values

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor."""
        start, stop = self._places[name]
        with open(self.path, "rb") as file:
            file.seek(start)
            for at in range(start, stop, CHUNK):
                yield file.read(min(CHUNK, stop - at))


def encode_stream(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], chunks: Callable[[str], Iterable[bytes]]
) -> Iterator[bytes]:
    """A safetensors file piece by piece.

    Args:
        tensors: what it is to hold, in the order in which it is to lie there.
        chunks: name → the tensor's bytes, asked for one tensor after the other.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, info in tensors.items():
        place = [at, at + info.num_bytes]
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": place}
        at = place[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield _LENGTH.pack(len(encoded)) + encoded
    for name in tensors:
        yield from chunks(name)


def chunks_of(values: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in memory, as `encode_stream` takes them."""
    yield memoryview(np.ascontiguousarray(values)).cast("B") if values.size else memoryview(b"")
