"""Shows text that others wrote on a terminal and in messages, without letting it act on the terminal.

Names of files need not be valid UTF-8: Python keeps their other bytes as lone surrogates, which no encoder accepts.
Texts may hold control characters (ANSI escapes move the cursor and change the window's title) and bidirectional
overrides, which show characters in another order than they have. `printable` spells all of these as escapes.
"""

import re

# C0 controls except newline and tab, C1 controls, line and paragraph separators, bidirectional embeddings, overrides
# and isolates, and surrogates. A carriage return before a newline only ends the line. The marks U+200E, U+200F, and
# U+061C, which Arabic and Hebrew text needs, reorder nothing beyond their neighbours.
_ACTIVE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def printable(text: str) -> str:
    """Replaces what would act on a terminal, or cannot be encoded, by escapes such as \\x1b. Keeps newlines and tabs.

    A byte of a file name that is not UTF-8 becomes \\xb2, as in the shell.
    """
    return _ACTIVE.sub(lambda match: escape(match[0]), text)


def printable_name(name: object) -> str:
    """Returns a name or a path for a message: like `printable`, on one line."""
    return re.sub(r"[\r\n\t]", lambda match: escape(match[0]), printable(str(name)))


def escape(character: str) -> str:
    """Returns the escape of a character, e.g. \\n, \\x1b, \\u202e, or \\xb2 for the byte that U+DCB2 stands for."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
