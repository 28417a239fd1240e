"""Damages and forges files. Every choice is made by `pick(n)`, which returns an integer below n.

So one set of mutations serves hypothesis, which shrinks what it finds, and atheris, which is guided by coverage.
"""

import copy
import json
from collections.abc import Callable
from typing import Any

from mindpangu.tensor_format import LENGTH

Pick = Callable[[int], int]

HOSTILE = (
    None,
    True,
    -1,
    -7,
    0,
    3.0,
    1.5,
    10**40,
    -(2**63),
    float("nan"),
    float("inf"),
    "",
    "4",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "n" * 100_000,
    [],
    {},
    [0] * 100,
    [[[]]],
    {"../../x": {"bytes": 1}},
)
"""Values that replace those in a file of mindpangu."""

_NUMBERS = (-1, 0, 1, 255, 2**31, 2**32, 2**63 - 1)
_TEXTS = (b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 64, b"null", b"[]", b"{}", b"\xef\xbb\xbf{}")


def mutate(data: bytes, form: str, pick: Pick) -> bytes:
    """Returns a mutation of a file.

    Args:
        form: "json", "safetensors", or "bytes": what a mutation may know about the content.
    """
    structured = pick(4) > 0
    if form == "json" and structured:
        return encode(mutate_json(json.loads(data), pick), pick)
    if form == "safetensors" and structured:
        return mutate_header(data, pick)
    return mutate_bytes(data, pick)


def mutate_bytes(data: bytes, pick: Pick) -> bytes:
    """Flips, cuts, inserts, repeats, or replaces bytes."""
    at = pick(len(data) + 1)
    length = 1 + pick(16)
    how = pick(7)
    if how == 0:
        flipped = bytearray(data)
        for _ in range(length):
            if flipped:
                flipped[pick(len(flipped))] ^= 1 << pick(8)
        return bytes(flipped)
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + data[at + length :]
    if how == 3:
        return data[:at] + data[at : at + length] * 3 + data[at + length :]
    if how == 4:
        return data[:at] + bytes(pick(256) for _ in range(length)) + data[at + length :]
    if how == 5:
        number = _NUMBERS[pick(len(_NUMBERS))].to_bytes(8, "little", signed=True)
        return data[:at] + number + data[at + 8 :]
    return _TEXTS[pick(len(_TEXTS))]


def mutate_json(value: Any, pick: Pick) -> Any:
    """Returns a copy in which one to three fields are missing, renamed, added, swapped, or have a hostile value."""
    value = copy.deepcopy(value)
    for _ in range(1 + pick(3)):
        containers = list(_containers(value))
        if not containers:
            return HOSTILE[pick(len(HOSTILE))]
        chosen = containers[pick(len(containers))]
        keys = list(chosen) if isinstance(chosen, dict) else list(range(len(chosen)))
        hostile = copy.deepcopy(HOSTILE[pick(len(HOSTILE))])
        how = pick(6)
        if not keys or how == 0:
            if isinstance(chosen, dict):
                chosen["../../x" if pick(2) else "extra"] = hostile
            else:
                chosen.append(hostile)
            continue
        key = keys[pick(len(keys))]
        if how == 1:
            del chosen[key]
        elif how == 2 and isinstance(chosen, dict):
            content = chosen.pop(key)
            chosen[("../../x", f"{key}/../../../x", "n" * 100_000, "a\0b")[pick(4)]] = content
        elif how == 3:
            other = keys[pick(len(keys))]
            chosen[key], chosen[other] = chosen[other], chosen[key]
        elif how == 4 and type(chosen[key]) is int:
            chosen[key] += (-1, 1, 2**31, -(2**31))[pick(4)]
        else:
            chosen[key] = hostile
    return value


def mutate_header(data: bytes, pick: Pick) -> bytes:
    """Mutates the JSON header of a safetensors file, or the JSON text in its metadata."""
    (length,) = LENGTH.unpack_from(data)
    header = json.loads(data[LENGTH.size : LENGTH.size + length])
    metadata = header.get("__metadata__", {})
    if metadata and pick(2):
        name = list(metadata)[pick(len(metadata))]
        try:
            inner = json.loads(metadata[name])
        except ValueError:
            inner = metadata[name]
        metadata[name] = encode(mutate_json(inner, pick), pick).decode("utf-8", "surrogateescape")
    else:
        header = mutate_json(header, pick)
    encoded = encode(header, pick)
    stated = len(encoded) if pick(8) else _NUMBERS[pick(len(_NUMBERS))]
    return LENGTH.pack(stated % 2**64) + encoded + data[LENGTH.size + length :]


def encode(value: Any, pick: Pick) -> bytes:
    """Encodes JSON; now and then with a duplicate key, or nested absurdly deep."""
    text = json.dumps(value)
    how = pick(16)
    if how == 0:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    elif how == 1:
        text = "[" * 100_000 + text + "]" * 100_000
    return text.encode("utf-8", "surrogatepass")


def _containers(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from _containers(child)
