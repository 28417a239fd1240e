"""Texts of others in messages and on terminals: nothing acts on the terminal, everything else stays readable."""

import os
import unicodedata

import pytest

from mindpangu.display import printable, printable_line, short_lines


@pytest.mark.parametrize(
    "text",
    [
        "plain\n\ttext",
        "中文，全角　空格",
        "سلام \u200f",
        "नमस्ते\u200d",
        "👩\u200d💻",
        "line\r\nline",
        "\u00a0",
        "\\x1b is spelled",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("abc\rxyz", r"abc\rxyz"),
        ("a\x08b\x7f", r"a\x08b\x7f"),
        ("user\u202egnp.exe\u202c", r"user\u202egnp.exe\u202c"),
        ("\u2066isolated\u2069", r"\u2066isolated\u2069"),
        (os.fsdecode("测".encode("gbk")), r"\xb2\xe2"),
        ("\ud800", r"\ud800"),
    ],
)
def test_characters_that_control_a_terminal_become_escapes(text, shown):
    assert printable(text) == shown


def test_no_control_character_and_no_surrogate_passes():
    passed = {character for character in map(chr, range(0x11000)) if printable(character) == character}

    assert {character for character in passed if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")} == {
        "\n",
        "\t",
    }
    assert {
        each for each in passed if unicodedata.bidirectional(each) in "LRE RLE LRO RLO PDF LRI RLI FSI PDI".split()
    } == set()
    "".join(passed).encode("utf-8")


def test_a_name_stays_on_one_line():
    assert printable_line("a\nb\tc\r\nd") == r"a\nb\tc\r\nd"


def test_a_message_stays_short_whatever_it_quotes():
    assert short_lines("a\nb" * 50) == "a\nb" * 50
    shown = short_lines(f"begin {'x' * 5_000_000} end\nnext")

    assert len(shown) < 2100
    assert shown.startswith("begin xxx")
    assert shown.endswith("xxx end\nnext")
