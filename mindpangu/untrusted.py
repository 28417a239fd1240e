"""Reads files that may come from anyone, and validates what is in them before it is used.

    data = read_bytes(path, limit)            a regular file of limited size; links, FIFOs, and devices are refused
    value = parse_json(data)                  JSON of limited depth, without duplicate keys, NaN, or Infinity
    record = read_record(Record, value)       a dataclass: every field is present, of its type, and in its range
    path = inside(folder, name)               a path below a folder, with no link on the way
    name = check_name("domain", text)         a name that becomes part of a path

Errors are ValueErrors (or OSErrors, if a file cannot be opened) that name the field, its value, and what is allowed.
The caller adds the file and the remedy in its MindPanguError; `display.describe_error` words both kinds alike. This
module imports only `display` from mindpangu, so every other module may use it.
"""

import dataclasses
import errno
import json
import math
import os
import re
import stat
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mindpangu.display import short_repr, short_text

JSON_LIMIT = 16 << 20
"""Maximum size of a JSON file in bytes. A manifest of 100,000 files stays below it."""

MAX_DEPTH = 64
"""Maximum depth of nested lists and objects in JSON."""

_INT64 = 1 << 63
_LARGEST_FLOAT = 1.7976931348623157e308
_MOST_DIGITS = 400
_MOST_BRACKETS = 500_000
_MOST_ENTRIES = 200_000  # of a list or an object whose entries are read one by one
_CHUNK_BYTES = 1 << 22
_STRING_LIMIT = 1 << 16  # characters of a string field without a rule of its own
_KINDS_OF_FILE = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

_Record = TypeVar("_Record")


# ---- Files -----------------------------------------------------------------------------------------------------------


def open_file(path: Path, *, follow_link: bool = False) -> BinaryIO:
    """Opens a regular file for reading, without waiting for a FIFO's writer.

    Args:
        follow_link: True for paths that the user named, which may be links; False for files below a folder that comes
            from elsewhere.

    Raises:
        OSError: the file does not exist or cannot be opened.
        ValueError: it is a link, a folder, a FIFO, or a device.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link:
            raise ValueError("it is a link; only regular files are read here") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = _KINDS_OF_FILE.get(stat.S_IFMT(mode), "not a regular file")
        raise ValueError(f"it is {kind}; only regular files are read here")
    return open(descriptor, "rb")


def read_bytes(path: Path, limit: int = JSON_LIMIT, *, follow_link: bool = False) -> bytes:
    """Reads a regular file of at most `limit` bytes. Raises like `open_file`, and ValueError if the file is larger."""
    with open_file(path, follow_link=follow_link) as file:
        size = os.fstat(file.fileno()).st_size
        pieces = []
        done = 0
        # a small file takes a small buffer; one byte more than is left shows whether the file has grown meanwhile
        while size <= limit and (piece := file.read(min(_CHUNK_BYTES, size - done + 1))):
            pieces.append(piece)
            done += len(piece)
            size = max(size, done)
    if size > limit:
        raise ValueError(f"it has {size:,} bytes; allowed: at most {limit:,}")
    return b"".join(pieces)


def read_user_file(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """Reads a file of at most `limit` bytes that the user named in a command; not for files in a run folder.

    The file may be a link, or a pipe such as <(…) of a shell or /dev/stdin, which is read to its end.

    Raises:
        OSError: the file does not exist or cannot be opened.
        ValueError: it is a folder or a device, is too large, or is an empty pipe.
    """
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return read_bytes(path, limit, follow_link=True)
    with open(path, "rb") as pipe:
        data = pipe.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes; allowed: at most {limit:,}")
    if not data:
        raise ValueError("it is an empty pipe; a pipe can be read only once, so give a file instead")
    return data


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file below a folder. The folder itself may be a link.

    Args:
        name: the file's path relative to the folder, with slashes.

    Raises:
        ValueError: the name is empty, absolute, or leads out of the folder, or a folder on the way is a link.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ValueError(
            f"{short_repr(name)} is not the name of a file in this folder; allowed: a relative path without .."
        )
    path = folder
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise ValueError(f"its folder {short_repr(part)} is a link; only the outermost folder may be one")
    return path / parts[-1]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def parse_json(data: bytes | str, *, allow_nan: bool = False) -> Any:
    """Parses JSON in UTF-8.

    Args:
        allow_nan: True to read NaN, Infinity, and numbers beyond float64, which Python writes for losses that diverge.

    Raises:
        ValueError: it is not JSON, is nested more than MAX_DEPTH deep, has a key twice in an object, has an integer of
            hundreds of digits, or has a number that is not finite.
    """
    text = data if isinstance(data, str) else _decode(data)
    brackets = text.count("[") + text.count("{")
    if brackets > _MOST_BRACKETS:
        raise ValueError(f"it has {brackets:,} lists and objects; allowed: at most {_MOST_BRACKETS:,}")
    try:
        value = (_any_number if allow_nan else _finite_numbers).decode(text)
    except RecursionError:
        raise ValueError(f"it is nested too deeply; allowed: {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if brackets > MAX_DEPTH:  # fewer brackets cannot nest more deeply
        _require_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"it has the key {short_repr(key)} twice in one object")
            seen.add(key)
    return result


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # Python would take quadratic time, or refuse it in its own words
        raise ValueError(f"it has the integer {short_text(text)}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"it has the number {short_text(text)}, which is beyond float64")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it has {text} where a number must be finite")


# created once: `json.loads` would create a decoder for every line of a corpus, which takes longer than parsing the line
_any_number = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
STREAM_DECODER = _any_number
"""Decodes one of several JSON values in a text (`raw_decode`). Raises JSONDecodeError if it is incomplete or no JSON;
another ValueError if it has a key twice or a long integer; RecursionError if it is nested too deeply."""
_finite_numbers = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant
)


def _require_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested too deeply; allowed: {MAX_DEPTH} levels")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None


# ---- Records ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Range:
    """A rule for a number: `Annotated[int, Range(0, 100)]`, both ends included."""

    minimum: float = -math.inf
    maximum: float = math.inf

    def allows(self, value: Any) -> bool:
        return self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        ends = ((">=", self.minimum), ("<=", self.maximum))
        return " and ".join(f"{sign} {end}" for sign, end in ends if math.isfinite(end))


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A rule for a string: `Annotated[str, Pattern("[0-9a-f]{32}", "32 hex digits")]`.

    Attributes:
        expression: regular expression that the whole string must match.
        allowed: the rule in words, for messages.
    """

    expression: str
    allowed: str

    def allows(self, value: Any) -> bool:
        return re.fullmatch(self.expression, value) is not None

    def __str__(self) -> str:
        return self.allowed


DIGEST = Pattern("[0-9a-f]{32}", "32 hex digits")
"""A hash, as mindpangu writes it."""

Count = typing.Annotated[int, Range(0)]
"""The type of a field that counts something."""

Measured = typing.NewType("Measured", float)
"""The type of a field that may also be infinite or NaN, such as the loss of a training that diverged."""


def read_record(record: type[_Record], value: Any, where: str = "") -> _Record:
    """Builds a dataclass from a JSON object.

    Field types may be bool, int, float, Measured, str, None, Any, Literal, list, tuple, dict with string keys, another
    dataclass, a union of one of these with None, and Annotated with a rule (`Range`, `Pattern`, `NameRule`). Types are
    exact: True and 3.0 are not integers, but 3 is accepted as a float. If a field has another name in the file, its
    metadata gives it as `key`.

    Args:
        record: the dataclass. Fields without a default must be in the object.
        value: what `parse_json` returned.
        where: name of the object in error messages; "" for the whole file.

    Raises:
        ValueError: a field is missing, unknown, of another type, or out of range.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'its content'} is {short_repr(value)}; allowed: an object")
    prefix = f"{where}." if where else ""
    fields = {item.metadata.get("key", item.name): item for item in dataclasses.fields(record) if item.init}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise ValueError(f"{prefix}{short_text(key)} is an unknown field; allowed: {', '.join(fields)}")
    kinds = _types_of(typing.cast(Any, record))
    found = {}
    for key, item in fields.items():
        if key in value:
            found[item.name] = read_value(kinds[item.name], value[key], prefix + key)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{key} is missing")
    try:
        return record(**found)
    except ValueError as error:  # from a rule that involves several fields
        raise ValueError(f"{where or 'its content'}: {error}") from None


@lru_cache
def _types_of(record: Any) -> dict[str, Any]:
    return typing.get_type_hints(record, include_extras=True)


def read_value(kind: Any, value: Any, where: str) -> Any:
    """Converts a JSON value to one of the types that `read_record` knows.

    Raises:
        ValueError: the value has another type or breaks a rule; the message begins with `where`.
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        base, *rules = arguments
        result = read_value(base, value, where)
        for rule in rules:
            _require(rule.allows(result), where, value, rule)
        return result
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (other,) = (each for each in arguments if each is not type(None))
        return read_value(other, value, where)
    if origin is typing.Literal:
        _require(value in arguments and not isinstance(value, bool), where, value, " or ".join(map(repr, arguments)))
        return value
    if origin in (list, tuple):
        return _read_list(origin, arguments, value, where)
    if origin in (dict, Mapping):
        return _read_dict(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return read_record(typing.cast(type, kind), value, where)
    return _read_scalar(kind, value, where)


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is int:
        _require(type(value) is int, where, value, "an integer")
        _require(-_INT64 <= value < _INT64, where, value, "a 64-bit integer")
    elif kind is float:
        is_number = type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT
        _require(is_number, where, value, "a finite number")
        return float(value)
    elif kind is Measured:
        is_number = type(value) is float or (type(value) is int and abs(value) <= _LARGEST_FLOAT)
        _require(is_number, where, value, "a number that float64 can hold")
    elif kind is str:
        _require(type(value) is str, where, value, "text")
        _require(len(value) <= _STRING_LIMIT, where, value, f"at most {_STRING_LIMIT:,} characters")
        _require(not any("\ud800" <= character <= "\udfff" for character in value), where, value, "valid Unicode")
    elif kind is bool:
        _require(type(value) is bool, where, value, "true or false")
    elif kind is type(None):
        _require(value is None, where, value, "null")
    else:
        raise TypeError(f"{where}: records cannot have fields of type {kind}")
    return value


def _read_list(origin: type, arguments: tuple, value: Any, where: str) -> Any:
    _require(type(value) is list, where, value, "a list")
    _require(len(value) <= _MOST_ENTRIES, where, value, f"at most {_MOST_ENTRIES:,} entries")
    if origin is list or arguments[-1] is Ellipsis:
        return origin(read_value(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    _require(len(value) == len(arguments), where, value, f"a list of {len(arguments)} entries")
    kinds = enumerate(zip(arguments, value, strict=True))
    return tuple(read_value(kind, each, f"{where}[{index}]") for index, (kind, each) in kinds)


def _read_dict(arguments: tuple, value: Any, where: str) -> dict[str, Any]:
    _require(type(value) is dict, where, value, "an object")
    _require(len(value) <= _MOST_ENTRIES, where, value, f"at most {_MOST_ENTRIES:,} entries")
    key_type, value_type = arguments
    result = {}
    for key, each in value.items():
        read_value(key_type, key, f"a key of {where}")
        result[key] = read_value(value_type, each, f"{where}.{short_text(key)}")
    return result


def _require(holds: bool, where: str, value: Any, allowed: object) -> None:
    if not holds:
        raise ValueError(f"{where} is {short_repr(value)}; allowed: {allowed}")


# ---- Names -----------------------------------------------------------------------------------------------------------

# no surrogates other than those that stand for bytes of a name that is not UTF-8 (PEP 383)
_FILE_NAME = r"(?!\.{1,2}$)[^/\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]+"
_NAMES = {
    "domain": (r"[\w-]+", 100, "letters, digits, _ and -"),
    "vocabulary": (r"[\w-][\w.-]*", 100, "letters, digits, _, - and . (not as the first character)"),
    "run": (_FILE_NAME, 200, "the name of one folder, without / and control characters"),
    "tensor": (r"[\w-][\w.-]*", 400, "letters, digits, _, - and . (not as the first character)"),
    "file": (_FILE_NAME, 250, "the name of one file, without / and control characters"),
}
"""Kind of name → regular expression, maximum length in bytes, and the expression in words."""


def check_name(kind: str, text: str) -> str:
    """Returns a name that becomes part of a path, after checking its characters and its length.

    Args:
        kind: "domain", "vocabulary", "run", "tensor", or "file".

    Raises:
        ValueError: the name is too long, or has a character that this kind of name may not have.
    """
    expression, limit, allowed = _NAMES[kind]
    if not isinstance(text, str) or not re.fullmatch(expression, text):
        raise ValueError(f"the {kind} name is {short_repr(text)}; allowed: {allowed}")
    num_bytes = len(text.encode("utf-8", "surrogateescape"))
    if num_bytes > limit:
        raise ValueError(f"the {kind} name {short_repr(text)} has {num_bytes:,} bytes; allowed: at most {limit}")
    return text


@dataclasses.dataclass(frozen=True)
class NameRule:
    """A rule for a string that is a name: `Annotated[str, NameRule("domain")]`; see `check_name`."""

    kind: str

    def allows(self, value: Any) -> bool:
        try:
            check_name(self.kind, value)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        _, limit, allowed = _NAMES[self.kind]
        return f"{allowed}, at most {limit} bytes"


DomainName = typing.Annotated[str, NameRule("domain")]
TensorName = typing.Annotated[str, NameRule("tensor")]
