"""No text file is read or written in the encoding of the locale, which may be ASCII."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("mindpangu", "ascend_ops") for path in (PROJECT / package).rglob("*.py"))


def without_encoding(source):
    """Yields the line of every call that reads or writes text and names no encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        is_method = isinstance(call.func, ast.Attribute)
        if name == "open":
            modes = [keywords.get("mode"), *call.args[not is_method :][:1]]
            mode = next((mode.value for mode in modes if isinstance(mode, ast.Constant)), None)
            is_text = isinstance(mode, str) and "b" not in mode and set(mode) <= set("rwxa+t")
            is_text = is_text or (not is_method and len(call.args) == 1 and mode is None)
        elif name in ("read_text", "write_text"):
            is_text = is_method and len(call.args) <= (name == "write_text")
        else:
            is_text = isinstance(getattr(keywords.get("text"), "value", None), bool)
        if is_text and "encoding" not in keywords:
            yield call.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("open(path)\nopen(path, 'a')\npath.open('w')\n", [1, 2, 3]),
        ("path.read_text()\npath.write_text(text)\nsubprocess.run(command, text=True)\n", [1, 2, 3]),
        ("open(path, 'rb')\nopen(path, 'a', encoding='utf-8')\npath.read_text('ascii')\nTokenShards.open(path)\n", []),
        ("os.open(path, os.O_RDONLY)\npath.write_text(text, 'utf-8')\nsubprocess.run(command)\n", []),
    ],
)
def test_the_check_finds_what_it_should(source, lines):
    assert list(without_encoding(source)) == lines


def test_every_text_file_has_an_encoding():
    found = [
        f"{path.relative_to(PROJECT)}:{line}"
        for path in SOURCES
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]

    assert found == []
