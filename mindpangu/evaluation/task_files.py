"""Reads the forms in which publishers ship their questions: JSON, JSON lines, and CSV.

All functions raise OSError or ValueError with the reason.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindpangu.untrusted import parse_json, read_user_file
from mindpangu.user_input import decode_line, decode_text, parse_record, text_lines

_LIMIT = 1 << 28  # bytes of a file that is read whole


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file with one JSON object per line. A record ends at a line feed only: texts contain
    other characters that Python counts as the end of a line."""
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            try:
                yield parse_record(decode_line(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def json_value(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return parse_json(read_user_file(path, _LIMIT))


def csv_rows(path: Path) -> list[list[str]]:
    """Returns the rows of a CSV file, without empty ones."""
    text = decode_text(read_user_file(path, _LIMIT))
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(row)]
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None


def text_in(record: Mapping[str, Any], field: str) -> str:
    """Returns the text of a field. Raises KeyError without it, and ValueError if it is not a text."""
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {type(value).__name__}, not a text')
    return value


def index_of(answer: Any, choices: Sequence[Any]) -> int:
    """Returns the index of a label or an answer among all possible ones, compared as texts in lower case."""
    for index, choice in enumerate(choices):
        if str(answer).strip().lower() == str(choice).strip().lower():
            return index
    raise ValueError(f"the answer {str(answer)!r} is not among {', '.join(map(str, choices))}")
