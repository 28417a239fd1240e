"""Makes text and values from elsewhere safe to show in messages and on terminals.

A file name need not be valid UTF-8: Python keeps the invalid bytes as lone surrogates, which no encoder accepts. Text
may hold control characters (ANSI escapes move the cursor and change the window's title) and bidirectional overrides,
which reorder what the reader sees. `printable` replaces all of these with escapes; `short_text` and `short_repr` also
keep a value in a message short, however large it is, and `short_lines` does so with a message. This module imports
nothing from mindpangu.
"""

import re
from typing import Any

_MAX_SHOWN = 80  # characters of a value in a message
_MAX_LINE = 2000  # characters of a line of a message, whatever is quoted in it

# C0 controls except newline and tab, C1 controls, line and paragraph separators, bidirectional embeddings, overrides
# and isolates, and surrogates. A carriage return before a newline only ends the line. The marks U+200E, U+200F, and
# U+061C, which Arabic and Hebrew text needs, reorder nothing beyond their neighbours.
_UNSAFE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def printable(text: str) -> str:
    """Escapes characters that control a terminal or cannot be encoded, e.g. as \\x1b. Keeps newlines and tabs.

    A byte of a file name that is not UTF-8 becomes an escape such as \\xb2, as in the shell.
    """
    return _UNSAFE.sub(lambda match: escape(match[0]), text)


def printable_line(text: object) -> str:
    """Like `printable`, for a name, path, or text on one line: newlines and tabs become escapes, too."""
    return re.sub(r"[\r\n\t]", lambda match: escape(match[0]), printable(str(text)))


def short_text(text: str) -> str:
    """Formats a text for a message: like `printable_line`, without quotes, and cut after 80 characters."""
    shown = printable_line(text[:_MAX_SHOWN])
    return shown if len(text) <= _MAX_SHOWN else f"{shown}… ({len(text):,} characters)"


def short_repr(value: Any) -> str:
    """Formats a value for a message: as Python writes it, on one line, and cut after 80 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]!r}… ({len(value):,} characters)"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MAX_SHOWN:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} with {len(value):,} {'entry' if len(value) == 1 else 'entries'}"
    return "null" if value is None else short_text(repr(value))


def short_lines(text: str) -> str:
    """Returns a message whose lines are cut to 2,000 characters: an option, a path, or a record in it may be long."""
    return "\n".join(
        line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE // 2]} … {line[-_MAX_LINE // 2 :]}"
        for line in text.split("\n")
    )


def describe_error(error: Exception) -> str:
    """Returns the reason why a file cannot be read, for a message: "No such file or directory", "step is '4'; …"."""
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__


def escape(character: str) -> str:
    """Returns the escape of a character, e.g. \\n, \\x1b, \\u202e, or \\xb2 for the byte that U+DCB2 stands for."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
