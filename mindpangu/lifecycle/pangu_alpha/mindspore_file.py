"""A MindSpore checkpoint file (.ckpt), one tensor at a time.

`mindspore.load_checkpoint` holds a file twice, as bytes and as tensors. The format is protobuf (MindSpore's
checkpoint.proto), of which this module knows as much as it needs:

    file      value*                    field 1; a tensor larger than 512 MB is several values with one name
    value     name, tensor              fields 1 and 2
    tensor    shape, dtype, content     fields 1, 2 and 3; the shape is that of the whole tensor

A file may end in "crc_num" and ten bytes, the CRC-32 of all before.
"""

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindpangu.errors import CheckpointError

_DTYPES = {"Float16": np.float16, "Float32": np.float32, "Float64": np.float64, "Int32": np.int32, "Int64": np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_PIECE = 1 << 28  # bytes of content in one value
_CHUNK = 1 << 22
_CHECKSUM, _CHECKSUM_BYTES = b"crc_num", 17
_VARINT, _LENGTH = 0, 2  # the kinds of fields that are used here
_FIXED = {1: 8, 5: 4}  # other kinds, and their bytes


@dataclass
class _Stored:
    dtype: str
    shape: tuple[int, ...]
    places: list[range] = field(default_factory=list)


class MindSporeFile:
    """A file that is opened for reading; nothing but its names, shapes and places is kept in memory.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is missing, not a MindSpore checkpoint, not whole, or its checksum is wrong.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, _Stored] = {}
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                self._index(view, _end_of_values(view))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:  # of mmap: an empty file
            raise CheckpointError(
                f"{path} is not a whole MindSpore checkpoint: {error}; download or copy it again"
            ) from None

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor, as it is stored.

        Raises:
            CheckpointError: its number format is none that weights have, or its content does not fit its shape.
        """
        stored = self._tensors[name]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is of type {stored.dtype}; known: {', '.join(_DTYPES)}")
        values = np.empty(stored.shape, _DTYPES[stored.dtype])
        found = sum(map(len, stored.places))
        if found != values.nbytes:
            raise CheckpointError(
                f"{self.path}: {name} has {found} bytes, its shape {list(stored.shape)} of {stored.dtype} needs "
                f"{values.nbytes}; download or copy the file again"
            )
        content, at = memoryview(values.reshape(-1)).cast("B"), 0
        with open(self.path, "rb") as file:
            for place in stored.places:
                file.seek(place.start)
                file.readinto(content[at : at + len(place)])
                at += len(place)
        return values

    def _index(self, view: mmap.mmap, end: int) -> None:
        for number, value in _fields(view, range(end)):
            if number != 1 or not isinstance(value, range):
                raise ValueError(f"it has a field {number} where tensors should be")
            parts = dict(_fields(view, value))
            if not isinstance(parts.get(1), range) or not isinstance(parts.get(2), range):
                raise ValueError(f"at byte {value.start} is no tensor")
            name, shape, dtype, content = _text(view, parts[1]), [], "", range(0)
            for item, found in _fields(view, parts[2]):
                if item == 1:
                    shape += [found] if isinstance(found, int) else _varints(view, found)
                elif item == 2:
                    dtype = _text(view, found)
                elif item == 3:
                    content = found
            whole = () if shape == [0] else tuple(shape)  # so earlier versions of MindSpore write scalars
            stored = self._tensors.setdefault(name, _Stored(dtype, whole))
            if (stored.dtype, stored.shape) != (dtype, whole):
                raise ValueError(f"{name} stands there twice")
            stored.places.append(content)


def encode_tensor(name: str, values: np.ndarray) -> Iterator[bytes | memoryview]:
    """A tensor as a checkpoint file has it; the file is nothing but its tensors one after the other."""
    content = memoryview(np.ascontiguousarray(values).reshape(-1)).cast("B")
    shape = b"".join(_key(1, _VARINT) + _varint(size) for size in values.shape)
    head = shape + _sized(2, _NAMES[values.dtype].encode())
    for start in range(0, max(len(content), 1), _PIECE):
        piece = content[start : start + _PIECE]
        before = head + _key(3, _LENGTH) + _varint(len(piece))
        tensor = _sized(1, name.encode()) + _key(2, _LENGTH) + _varint(len(before) + len(piece)) + before
        yield _key(1, _LENGTH) + _varint(len(tensor) + len(piece)) + tensor
        yield piece


# ---- protobuf --------------------------------------------------------------------------------------------------------


def _end_of_values(view: mmap.mmap) -> int:
    """Where a checksum begins, which is compared, or the file ends."""
    end = len(view) - _CHECKSUM_BYTES
    if view.find(_CHECKSUM, max(end + 1, 0)) >= 0:
        raise ValueError(f"it ends at byte {len(view)}, inside its checksum")
    if end < 0 or view[end : end + len(_CHECKSUM)] != _CHECKSUM:
        return len(view)
    found = 0
    for start in range(0, end, _CHUNK):
        found = zlib.crc32(view[start : min(start + _CHUNK, end)], found)
    if found != int.from_bytes(view[end + len(_CHECKSUM) :], "big"):
        raise ValueError("its checksum is wrong")
    return end


def _fields(view: mmap.mmap, place: range) -> Iterator[tuple[int, int | range]]:
    """Number and value of each field of a message; of one that is no varint its place.

    Raises:
        ValueError: a field that ends behind the message, or is of a kind that checkpoints do not have.
    """
    at = place.start
    while at < place.stop:
        key, at = _read_varint(view, at, place.stop)
        number, kind = key >> 3, key & 7
        if kind in _FIXED:
            size = _FIXED[kind]
        elif kind in (_VARINT, _LENGTH):
            size, at = _read_varint(view, at, place.stop)
            if kind == _VARINT:
                yield number, size
                continue
        else:
            raise ValueError(f"unknown content before byte {at}")
        if at + size > place.stop:
            raise ValueError(f"it ends at byte {place.stop}, inside a field that goes up to {at + size}")
        yield number, range(at, at + size)
        at += size


def _read_varint(view: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the last byte without the eighth, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == stop:
            raise ValueError(f"it ends at byte {at}, inside a number")
        byte, at = view[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"unknown content before byte {at}")


def _varints(view: mmap.mmap, place: range) -> list[int]:
    values, at = [], place.start
    while at < place.stop:
        value, at = _read_varint(view, at, place.stop)
        values.append(value)
    return values


def _text(view: mmap.mmap, place: int | range) -> str:
    if isinstance(place, int):
        raise ValueError("a number where text should be")
    return view[place.start : place.stop].decode()  # a UnicodeDecodeError is a ValueError


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _sized(number: int, content: bytes) -> bytes:
    return _key(number, _LENGTH) + _varint(len(content)) + content
