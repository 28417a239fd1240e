"""What users write: numbers, paths, and text files, which all readers treat alike."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import load_config
from mindpangu.data import CorpusReader
from mindpangu.domains import build_domains
from mindpangu.errors import MindPanguError
from mindpangu.generation.prompts import read_prompts
from mindpangu.tiny.tokenizer.documents import FileDocuments
from mindpangu.user_input import (
    decode_line,
    decode_text,
    expand_home,
    parse_integer,
    parse_number,
    parse_record,
    text_lines,
)

RECORDS = '{"domain": "en", "text": "first"}\n{"domain": "en", "text": "second"}\n'


def read_corpus(path: Path) -> object:
    config = load_config(None, {"data.corpus": json.dumps([str(path)])})
    return [record.parts for record in CorpusReader(config, build_domains(config))]


def read_documents(path: Path) -> object:
    return [document.texts for document in FileDocuments([str(path)])]


READERS = {
    "a corpus": ("corpus.jsonl", RECORDS, read_corpus),
    "records to count pieces in": ("records.jsonl", RECORDS, read_documents),
    "text to count pieces in": ("text.txt", "first\n\nsecond\n", read_documents),
    "prompts": ("prompts.txt", "first\nsecond\n", lambda path: read_prompts(path, "en")),
    "prompts as records": ("prompts.jsonl", '{"prompt": "a"}\n{"prompt": "b"}', lambda path: read_prompts(path, "en")),
    "a configuration": ("run.yaml", "training:\n  steps: 70\n", load_config),
}
"""Reader → (name of a file, its content, function that reads it)."""


@pytest.mark.parametrize(("name", "text", "read"), READERS.values(), ids=READERS)
def test_every_reader_skips_a_byte_order_mark(tmp_path, name, text, read):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    expected = read(path)

    path.write_text(text, "utf-8-sig")

    assert read(path) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(("name", "text", "read"), READERS.values(), ids=READERS)
def test_every_reader_says_in_one_message_that_a_file_is_not_utf8(tmp_path, name, text, read, encoding):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))

    with pytest.raises(MindPanguError, match=rf"{name}.* {encoding[:6].upper()}, not UTF-8; convert it .*`iconv -f"):
        read(path)


@pytest.mark.parametrize(("name", "text", "read"), READERS.values(), ids=READERS)
def test_every_reader_names_a_file_in_another_encoding(tmp_path, name, text, read):
    path = tmp_path / name
    path.write_bytes(text.encode() + "打".encode("gbk"))

    with pytest.raises(MindPanguError, match=rf"{name}.*not UTF-8"):
        read(path)


@pytest.mark.parametrize("name", ["a corpus", "records to count pieces in", "prompts as records"])
def test_every_reader_of_records_refuses_a_key_that_appears_twice(tmp_path, name):
    file_name, text, read = READERS[name]
    path = tmp_path / file_name
    path.write_text(text + '\n{"domain": "en", "text": "a", "prompt": "a", "x": {"y": 1, "y": 2}}\n')

    with pytest.raises(MindPanguError, match=rf"{file_name}:\d: it has the key 'y' twice"):
        read(path)


def test_joined_files_have_a_byte_order_mark_in_the_middle(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(RECORDS + "\ufeff" + RECORDS, "utf-8-sig")

    assert len(read_corpus(path)) == 4


def test_lines_that_are_not_utf8_are_refused_with_the_position():
    assert decode_line("中".encode()) == "中"
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 1 of the line\)"):
        decode_line(b"a\xe4")
    with pytest.raises(ValueError, match=r"not UTF-8 \(line 2\)"):
        decode_text(b"a\n\xe4")


@given(st.text().filter(lambda text: not text.startswith(("\0", "\ufeff")) and text[1:2] != "\0"))
def test_text_in_utf8_is_decoded_unchanged(text):
    assert decode_text(text.encode()) == text
    assert decode_text(text.encode("utf-8-sig")) == text


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_records_are_read_as_python_writes_them(record):
    assert parse_record(json.dumps(record)) == record


@pytest.mark.parametrize(
    "text", ["1_000", "１", "١", " 1", "1 ", "", "+", "1.0", "0x1", "1e3", "9" * 19, "9" * 5000, "1\n"]
)
def test_only_decimal_integers_are_integers(text):
    with pytest.raises(ValueError, match="is not an integer"):
        parse_integer(text)


@pytest.mark.parametrize("text", ["1_0.5", "１.5", "nan", "inf", "-Infinity", " 1", "", ".", "0x1p3", "1e999", "1.5\n"])
def test_only_finite_decimal_numbers_are_numbers(text):
    with pytest.raises(ValueError, match="is not a finite number"):
        parse_number(text)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_python_writes_them(integer, number):
    assert parse_integer(str(integer)) == integer
    assert parse_number(repr(number)) == number
    assert parse_integer("0100") == 100


def test_the_home_folder_is_expanded_or_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    assert expand_home("~/runs/*.jsonl") == "/home/me/runs/*.jsonl"
    assert expand_home("~") == "/home/me"
    for path in ("", "a/~", "./~/a", "a~b"):
        assert expand_home(path) == path
    with pytest.raises(ValueError, match=r"home folder ~nobody-has-this-name is unknown .* or write \./~nobody"):
        expand_home("~nobody-has-this-name/a")


def test_a_line_that_is_too_long_for_a_record_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mindpangu.user_input._LINE_LIMIT", 5)
    path = tmp_path / "corpus.jsonl"

    path.write_bytes(b"1234\n1234\n")
    assert list(text_lines(path)) == [b"1234\n", b"1234\n"]

    path.write_bytes(b"1234\n12345\n")
    with pytest.raises(OSError, match="line 2 has more than 5 bytes"):
        list(text_lines(path))
