"""Reading and writing MindSpore checkpoint files (.ckpt), one tensor at a time.

`mindspore.load_checkpoint` holds a file twice, as bytes and as tensors. The format is protobuf (MindSpore's
checkpoint.proto). This module knows only the fields that it needs:

    file      value*                    field 1; a tensor larger than 512 MB is several values with one name
    value     name, tensor              fields 1 and 2
    tensor    shape, dtype, content     fields 1, 2 and 3; the shape is that of the complete tensor

A file may end in "crc_num" and ten bytes, the CRC-32 of everything before it.
"""

import math
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindpangu.display import short_repr
from mindpangu.errors import CheckpointError
from mindpangu.untrusted import open_file

_DTYPES = {"Float16": np.float16, "Float32": np.float32, "Float64": np.float64, "Int32": np.int32, "Int64": np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_MAX_VALUES = 1 << 16
_MAX_FIELDS = 64  # of a value or a tensor, which has one field per axis of its shape
_MAX_AXES = 8
_LONGEST_NAME = 400  # bytes
_PIECE = 1 << 28  # bytes of content in one value
_CHUNK = 1 << 22
_CHECKSUM = b"crc_num"
_CHECKSUM_BYTES = 17

# wire types of protobuf
_VARINT = 0
_LENGTH = 2
_FIXED = {1: 8, 5: 4}  # wire types of fixed-size fields that are skipped, and their sizes in bytes


@dataclass
class _Stored:
    """A tensor in the file; `ranges` are the byte ranges of its content."""

    dtype: str
    shape: tuple[int, ...]
    ranges: list[range] = field(default_factory=list)


class MindSporeFile:
    """A file opened for reading. Keeps only the names, shapes and byte ranges of its tensors in memory.

    Args:
        path: path of the file.

    Raises:
        CheckpointError: the file is missing, incomplete, or not a MindSpore checkpoint, or its checksum is wrong.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, _Stored] = {}
        try:
            with open_file(path, follow_link=True) as file:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    self._index(view, _end_of_values(view))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:  # also from mmap, for an empty file
            raise CheckpointError(
                f"{path} is not a complete MindSpore checkpoint: {error}; download or copy it again"
            ) from None

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor as it is stored.

        Raises:
            CheckpointError: its number format is unknown, or its content does not fit its shape.
        """
        stored = self._tensors[name]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is of type {stored.dtype}; known: {', '.join(_DTYPES)}")
        dtype = np.dtype(_DTYPES[stored.dtype])
        needed = math.prod(stored.shape) * dtype.itemsize
        found = sum(map(len, stored.ranges))
        if found != needed:  # before any memory is allocated
            raise CheckpointError(
                f"{self.path}: {name} has {found} bytes, its shape {list(stored.shape)} of {stored.dtype} needs "
                f"{needed}; download or copy the file again"
            )
        values = np.empty(stored.shape, dtype)
        content = values.reshape(-1).data.cast("B")
        at = 0
        with open_file(self.path, follow_link=True) as file:
            for span in stored.ranges:
                file.seek(span.start)
                file.readinto(content[at : at + len(span)])  # type: ignore[attr-defined]
                at += len(span)
        return values

    def _index(self, view: mmap.mmap, end: int) -> None:
        for number, value in _fields(view, range(end), _MAX_VALUES):
            if number != 1 or not isinstance(value, range):
                raise ValueError(f"found field {number} where a tensor was expected")
            fields = dict(_fields(view, value))
            tensor = fields.get(2)
            if not isinstance(fields.get(1), range) or not isinstance(tensor, range):
                raise ValueError(f"there is no tensor at byte {value.start}")
            name = _text(view, fields[1])
            shape: list[int] = []
            dtype = ""
            content = range(0)
            for item, found in _fields(view, tensor):
                if item == 1:
                    shape += [found] if isinstance(found, int) else _varints(view, found)
                    if len(shape) > _MAX_AXES:
                        raise ValueError(f"{name} has more than {_MAX_AXES} axes")
                elif item == 2:
                    dtype = _text(view, found)
                elif item == 3:
                    content = _require_range(found)
            whole_shape = () if shape == [0] else tuple(shape)  # earlier versions of MindSpore write scalars as [0]
            stored = self._tensors.setdefault(name, _Stored(dtype, whole_shape))
            if (stored.dtype, stored.shape) != (dtype, whole_shape):
                raise ValueError(f"it contains {name} twice, with different types or shapes")
            stored.ranges.append(content)


def encode_tensor(name: str, values: np.ndarray) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a tensor in a checkpoint file; the file is the concatenation of its tensors."""
    content = np.ascontiguousarray(values).reshape(-1).data.cast("B")
    shape = b"".join(_key(1, _VARINT) + _varint(size) for size in values.shape)
    shape_and_dtype = shape + _sized(2, _NAMES[values.dtype].encode())
    for start in range(0, max(len(content), 1), _PIECE):
        piece = content[start : start + _PIECE]
        head = shape_and_dtype + _key(3, _LENGTH) + _varint(len(piece))
        tensor = _sized(1, name.encode()) + _key(2, _LENGTH) + _varint(len(head) + len(piece)) + head
        yield _key(1, _LENGTH) + _varint(len(tensor) + len(piece)) + tensor
        yield piece


# ---- protobuf --------------------------------------------------------------------------------------------------------


def _end_of_values(view: mmap.mmap) -> int:
    """Verifies the checksum, if any. Returns where it starts, or else the end of the file: the end of the values."""
    end = len(view) - _CHECKSUM_BYTES
    if view.find(_CHECKSUM, max(end + 1, 0)) >= 0:
        raise ValueError(f"it ends at byte {len(view)}, inside its checksum")
    if end < 0 or view[end : end + len(_CHECKSUM)] != _CHECKSUM:
        return len(view)
    checksum = 0
    for start in range(0, end, _CHUNK):
        checksum = zlib.crc32(view[start : min(start + _CHUNK, end)], checksum)
    if checksum != int.from_bytes(view[end + len(_CHECKSUM) :], "big"):
        raise ValueError("its checksum is wrong")
    return end


def _fields(view: mmap.mmap, message: range, max_fields: int = _MAX_FIELDS) -> Iterator[tuple[int, int | range]]:
    """Yields the number and the value of each field of a message. The value of a field that is not a varint is its
    range.

    Raises:
        ValueError: a field ends after the message, or has a wire type that checkpoints do not use, or there are more
            than `max_fields` fields.
    """
    at = message.start
    count = 0
    while at < message.stop:
        count += 1
        if count > max_fields:
            raise ValueError(f"the message at byte {message.start} has more than {max_fields:,} fields")
        key, at = _read_varint(view, at, message.stop)
        number = key >> 3
        wire_type = key & 7
        if wire_type in _FIXED:
            size = _FIXED[wire_type]
        elif wire_type in (_VARINT, _LENGTH):
            size, at = _read_varint(view, at, message.stop)
            if wire_type == _VARINT:
                yield number, size
                continue
        else:
            raise ValueError(f"unknown content before byte {at}")
        if at + size > message.stop:
            raise ValueError(f"it ends at byte {message.stop}, inside a field that goes up to {at + size}")
        yield number, range(at, at + size)
        at += size


def _read_varint(view: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """Reads a varint (7 bits per byte; the high bit is set in all but the last byte). Returns it and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if at == stop:
            raise ValueError(f"it ends at byte {at}, inside a number")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"unknown content before byte {at}")


def _varints(view: mmap.mmap, packed: range) -> list[int]:
    values: list[int] = []
    at = packed.start
    if len(packed) > 10 * _MAX_AXES:
        raise ValueError(f"a list of {len(packed):,} bytes where a shape was expected")
    while at < packed.stop:
        value, at = _read_varint(view, at, packed.stop)
        values.append(value)
    return values


def _text(view: mmap.mmap, value: int | range) -> str:
    span = _require_range(value)
    text = view[span.start : min(span.stop, span.start + _LONGEST_NAME)].decode()  # UnicodeDecodeError is a ValueError
    if len(span) > _LONGEST_NAME or not text.isprintable():
        raise ValueError(f"it has the name {short_repr(text)}; allowed: printable, up to {_LONGEST_NAME} bytes")
    return text


def _require_range(value: int | range) -> range:
    if isinstance(value, int):
        raise ValueError("found an integer where bytes were expected")
    return value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _sized(number: int, content: bytes) -> bytes:
    return _key(number, _LENGTH) + _varint(len(content)) + content
