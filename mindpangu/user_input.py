"""Parses what users write: text files, JSON records, numbers, and paths.

Options, configurations, corpora, and prompt files are all parsed with these functions, so that they agree on what a
number is, skip a byte order mark, and name the encoding of a file that is not UTF-8. The functions raise ValueError
with the reason; callers add the file or the option.
"""

import errno
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindpangu.display import short_repr
from mindpangu.untrusted import parse_json

INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
"""Decimal numbers as in YAML 1.2. Python's int and float also accept 1_000, digits of other scripts, and blanks."""

INTEGER_LIMIT = 2**63
"""Integers must be below this. No setting needs larger ones, and they would overflow elsewhere."""

_LINE_LIMIT = 1 << 27  # bytes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a UTF-8 text file with their line ends, without a leading byte order mark.

    The lines are not decoded, so that a caller can count those that are not UTF-8 (`decode_line`).

    Raises:
        OSError: the file cannot be read, or has a line that is too long for a record.
        UnicodeError: the whole file is in UTF-16 or UTF-32.
    """
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(_LINE_LIMIT + 1)
            if number == 1:
                _refuse_wide_encodings(line)
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line) > _LINE_LIMIT:
                raise OSError(errno.EFBIG, f"line {number} has more than {_LINE_LIMIT:,} bytes", str(path))
            if line:
                yield line
            elif number > 1:
                return


def decode_text(data: bytes) -> str:
    """Decodes a UTF-8 text file, without a leading byte order mark. Raises UnicodeError for any other encoding."""
    _refuse_wide_encodings(data)
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnicodeError(f"not UTF-8 (line {line}); convert it to UTF-8") from None


def decode_line(line: bytes) -> str:
    """Decodes a line of a text file. Raises ValueError with the position of the first byte that is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start} of the line)") from None


def parse_record(line: str) -> dict[str, Any]:
    """Parses a line of a jsonl file. Raises ValueError unless it is a JSON object; see `untrusted.parse_json`.

    NaN is accepted, because other programs write it for missing values in fields that mindpangu does not read.
    """
    text = line.removeprefix("\ufeff")  # files that were concatenated have a byte order mark in the middle
    record = parse_json(text, allow_nan=True)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    return record


def parse_integer(text: str) -> int:
    """Parses a decimal integer. Raises ValueError for anything else, including 1_000 and other Python spellings."""
    if not INTEGER.fullmatch(text) or len(text) > 40 or abs(int(text)) >= INTEGER_LIMIT:
        raise ValueError(f"{short_repr(text)} is not an integer")
    return int(text)


def parse_number(text: str) -> float:
    """Parses a finite decimal number, e.g. 2, 0.5, or 1e-3. Raises ValueError for anything else."""
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{short_repr(text)} is not a finite number")
    return value


def expand_home(path: str) -> str:
    """Replaces a leading ~ or ~user with the home folder. Raises ValueError if that folder is unknown."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(
            f"the home folder {user} is unknown here; give the path without {user}, or write ./{path} if a folder "
            "has this name"
        )
    return expanded


def _refuse_wide_encodings(data: bytes) -> None:
    encoding = json.detect_encoding(data[:4])
    if not encoding.startswith("utf-8"):
        name = encoding[:6].upper()
        raise UnicodeError(f"{name}, not UTF-8; convert it with `iconv -f {name} -t UTF-8`")
