"""The safetensors format: reads and validates the header of a file, and decodes a file in memory.

A file is 8 bytes of header length, a JSON header with the dtype, shape, and offsets of each tensor, then the tensors.
The header is not trusted: the tensors must fill the rest of the file, one after another, each with as many bytes as its
shape needs. So no tensor overlaps another or reaches beyond the file, and none takes more memory than the file has.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np

from mindpangu.display import short_text
from mindpangu.untrusted import Count, Range, check_name, parse_json, read_record, read_value

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
"""Name of a dtype in a header → dtype. The format is little-endian."""

LENGTH = struct.Struct("<Q")
"""The length of the header, which precedes it."""

HEADER_LIMIT = 8 << 20  # bytes
TENSORS_LIMIT = 1 << 15
_MAX_AXES = 8
_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor, as stated in the header of a file."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A valid header, which agrees with the size of its file.

    Attributes:
        metadata: the strings that the writer of the file added.
        tensors: name → dtype and shape, in the order of the file.
        offsets: name → (start, stop) in the file.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    offsets: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class _Entry:
    """The description of one tensor in a header."""

    dtype: Literal[tuple(DTYPES)]  # type: ignore[valid-type]
    shape: list[Annotated[int, Range(0, 1 << 48)]]
    data_offsets: tuple[Count, Count]


def read_header(file: BinaryIO, size: int) -> Header:
    """Reads the header of a file that is open at its beginning.

    Args:
        size: size of the file in bytes.

    Raises:
        ValueError: the header is cut off, too large, or malformed, or does not agree with the size of the file.
    """
    encoded = file.read(LENGTH.size)
    if len(encoded) < LENGTH.size:
        raise ValueError(f"it has {size} bytes, too few for a header")
    (length,) = LENGTH.unpack(encoded)
    if length > min(HEADER_LIMIT, size - LENGTH.size):
        raise ValueError(
            f"its header length is {length:,}; allowed: <= {HEADER_LIMIT:,} and <= {size - LENGTH.size:,}, the rest of "
            "the file"
        )
    return _header(parse_json(file.read(length)), LENGTH.size + length, size)


def decode(data: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns the metadata and the tensors of a file in memory; the tensors are read-only views.

    Raises:
        ValueError: like `read_header`.
    """
    import io

    header = read_header(io.BytesIO(data), len(data))
    tensors = {}
    for name, info in header.tensors.items():
        start, stop = header.offsets[name]
        values = np.frombuffer(data, np.uint8, stop - start, start).view(info.dtype).reshape(info.shape)
        tensors[name] = values if values.flags.aligned else values.copy()
    return header.metadata, tensors


def _header(content: Any, begin: int, size: int) -> Header:
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    metadata = read_value(dict[str, str], content.pop(_METADATA, {}), _METADATA)
    if len(content) > TENSORS_LIMIT:
        raise ValueError(f"its header has {len(content):,} tensors; allowed: at most {TENSORS_LIMIT:,}")
    entries = {check_name("tensor", name): read_record(_Entry, entry, name) for name, entry in content.items()}
    tensors = {}
    offsets = {}
    position = 0
    for name in sorted(entries, key=lambda name: entries[name].data_offsets):
        entry = entries[name]
        info = TensorInfo(DTYPES[entry.dtype], tuple(entry.shape))
        start, stop = entry.data_offsets
        if len(info.shape) > _MAX_AXES:
            raise ValueError(f"{name}.shape has {len(info.shape)} axes; allowed: at most {_MAX_AXES}")
        if start != position or stop - start != info.num_bytes:
            expected = short_text(str(position + info.num_bytes))
            raise ValueError(
                f"{name}.data_offsets is [{start}, {stop}]; allowed: [{position}, {expected}], according to its shape "
                "and the tensors before it"
            )
        tensors[name] = info
        offsets[name] = begin + start, begin + stop
        position = stop
    if begin + position != size:
        raise ValueError(f"its size does not match its header: it has {size:,} bytes instead of {begin + position:,}")
    return Header(metadata, tensors, offsets)


def dtype_name(dtype: np.dtype) -> str:
    """Returns the name of a dtype in a header. Raises ValueError if `DTYPES` does not have it."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"tensors of {dtype} cannot be written; allowed: {', '.join(DTYPES)}")


def require_tensors(found: Mapping[str, np.ndarray], allowed: Mapping[str, tuple[str, int]]) -> None:
    """Raises ValueError unless a file has exactly these tensors.

    Args:
        found: name → tensor.
        allowed: name → (name of its dtype, number of axes).
    """
    for name in sorted({*found, *allowed}):
        if name not in found:
            raise ValueError(f"tensor {name} is missing")
        if name not in allowed:
            raise ValueError(f"tensor {name} is unknown; allowed: {', '.join(allowed)}")
        dtype, axes = allowed[name]
        values = found[name]
        if values.dtype != DTYPES[dtype] or values.ndim != axes:
            raise ValueError(f"tensor {name} is {values.dtype} with {values.ndim} axes; allowed: {dtype} with {axes}")
