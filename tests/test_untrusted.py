"""Tests of reading what anyone may have written: files, JSON, records, names."""

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from mindpangu.display import describe_error, short_repr
from mindpangu.untrusted import (
    DIGEST,
    MAX_DEPTH,
    Count,
    DomainName,
    Range,
    check_name,
    inside,
    parse_json,
    read_bytes,
    read_record,
    read_user_file,
    read_value,
)


@dataclass(frozen=True)
class Part:
    digest: Annotated[str, DIGEST]
    share: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True)
class Whole:
    count: Count
    parts: dict[DomainName, Part] = field(default_factory=dict)
    pair: tuple[int, int] = (0, 1)
    names: list[str] = field(default_factory=list)
    kind: Literal["a", "b"] = "a"
    final: bool | None = None
    source: str | None = field(default=None, metadata={"key": "from"})
    rest: Any = None


GOOD = {
    "count": 3,
    "parts": {"zh": {"digest": "0" * 32, "share": 1}},
    "pair": [1, 2],
    "names": ["x"],
    "kind": "b",
    "final": True,
    "from": None,
    "rest": {"anything": [1]},
}


# ---- Files -----------------------------------------------------------------------------------------------------------


def make_link(path):
    path.with_name("target").write_bytes(b"secret")
    path.symlink_to("target")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = {"link": make_link, "folder": os.mkdir, "FIFO": os.mkfifo, "socket": make_socket}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(tmp_path, kind):
    SPECIAL[kind](tmp_path / "file")
    started = time.monotonic()

    with pytest.raises((ValueError, OSError)) as caught:
        read_bytes(tmp_path / "file")

    assert describe_error(caught.value)
    assert time.monotonic() - started < 2


def test_a_device_is_not_read():
    with pytest.raises(ValueError, match="it is a device"):
        read_bytes(os.path.realpath("/dev/zero"))


def test_a_link_that_the_user_named_is_followed(tmp_path):
    make_link(tmp_path / "file")

    assert read_bytes(tmp_path / "file", follow_link=True) == b"secret"


@contextlib.contextmanager
def pipe_with(data):
    """Yields the path of a pipe as a shell gives it for <(…). Its writer has written all and is gone."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_a_pipe_that_the_user_named_is_read_up_to_a_limit():
    with pipe_with(b"12345") as pipe:
        assert read_user_file(pipe, limit=5) == b"12345"
        with pytest.raises(ValueError, match="it is an empty pipe"):
            read_user_file(pipe, limit=5)
    with pipe_with(b"12345") as pipe, pytest.raises(ValueError, match="more than 4 bytes; allowed: at most 4"):
        read_user_file(pipe, limit=4)
    with pipe_with(b"12345") as pipe, pytest.raises(ValueError, match="FIFO; only regular files are read here"):
        read_bytes(pipe, follow_link=True)


@pytest.mark.parametrize("kind", ["link", "folder", "socket"])
def test_other_kinds_of_files_that_the_user_named_are_read_or_refused_as_usual(tmp_path, kind):
    SPECIAL[kind](tmp_path / "file")

    if kind == "link":
        assert read_user_file(tmp_path / "file") == b"secret"
    else:
        with pytest.raises((ValueError, OSError)):
            read_user_file(tmp_path / "file")


def test_a_file_above_its_limit_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)

    assert read_bytes(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(ValueError, match="it has 5 bytes; allowed: at most 4"):
        read_bytes(tmp_path / "file", limit=4)
    with pytest.raises(ValueError, match="allowed: at most"):
        read_bytes(tmp_path / "sparse")


def test_text_is_utf8(tmp_path):
    (tmp_path / "file").write_bytes(b"ab\xff")

    with pytest.raises(ValueError, match="not UTF-8 \\(byte 2\\)"):
        parse_json(read_bytes(tmp_path / "file"))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", ".", "..", "a/", "a\0b"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not the name of a file in this folder"):
        inside(tmp_path, name)


def test_a_folder_may_be_a_link_but_none_below_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "below").symlink_to("/")

    assert inside(tmp_path / "link", "a/b") == tmp_path / "link/a/b"
    with pytest.raises(ValueError, match="is a link"):
        inside(tmp_path / "link", "below/etc/passwd")


# ---- JSON ------------------------------------------------------------------------------------------------------------


HOSTILE_JSON = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "just too deep": b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
    "cut off": b'{"a": 1',
    "a key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "beyond float64": b'{"a": 1e999}',
    "an integer of many digits": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "empty": b"",
    "a name of 5 MB": b'{"a": 1, "' + b"n" * 5_000_000 + b'": 1, "' + b"n" * 5_000_000 + b'": 2}',
}


@pytest.mark.parametrize("case", list(HOSTILE_JSON))
def test_hostile_json_ends_in_one_short_message(case):
    started = time.monotonic()

    with pytest.raises(ValueError, match="it ") as caught:
        parse_json(HOSTILE_JSON[case])

    assert len(str(caught.value)) < 300
    assert time.monotonic() - started < 2


def test_json_of_the_greatest_depth_is_read():
    nested = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    assert parse_json(nested) == json.loads(nested)


def test_losses_that_diverged_are_read_on_request():
    assert parse_json(b"[Infinity, 1e999]", allow_nan=True) == [float("inf")] * 2


# ---- Records ---------------------------------------------------------------------------------------------------------


def test_a_record_is_read():
    whole = read_record(Whole, GOOD)

    assert whole == Whole(3, {"zh": Part("0" * 32, 1.0)}, (1, 2), ["x"], "b", True, None, {"anything": [1]})
    assert type(whole.parts["zh"].share) is float
    assert read_record(Whole, {"count": 0}) == Whole(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, "count is '3'; allowed: an integer"),
        ({"count": True}, "count is True; allowed: an integer"),
        ({"count": 3.0}, "count is 3.0; allowed: an integer"),
        ({"count": None}, "count is null; allowed: an integer"),
        ({"count": -5}, "count is -5; allowed: >= 0"),
        ({"count": 10**40}, "count is 1000.*; allowed: a 64-bit integer"),
        ({"extra": 1}, "extra is an unknown field; allowed: count, parts"),
        ({"parts": []}, "parts is a list with 0 entries; allowed: an object"),
        ({"parts": {"../x": GOOD["parts"]["zh"]}}, "a key of parts is '../x'; allowed: letters, digits"),
        ({"parts": {"zh": {"digest": "0"}}}, "parts.zh.digest is '0'; allowed: 32 hex digits"),
        ({"parts": {"zh": {"digest": "0" * 32, "share": 1.5}}}, "parts.zh.share is 1.5; allowed: >= 0 and <= 1"),
        ({"parts": {"zh": {"digest": "0" * 32, "share": float("nan")}}}, "parts.zh.share is nan; allowed: a finite"),
        ({"parts": {"zh": {}}}, "parts.zh.digest is missing"),
        ({"pair": [1]}, "pair is a list with 1 entry; allowed: a list of 2 entries"),
        ({"pair": [1, "2"]}, r"pair\[1\] is '2'; allowed: an integer"),
        ({"names": "x"}, "names is 'x'; allowed: a list"),
        ({"names": ["\ud800"]}, r"names\[0\] is '\\ud800'; allowed: valid Unicode"),
        ({"kind": "c"}, "kind is 'c'; allowed: 'a' or 'b'"),
        ({"kind": ["a"]}, "kind is a list"),
        ({"final": 1}, "final is 1; allowed: true or false"),
        ({"from": 1}, "from is 1; allowed: text"),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_record(Whole, GOOD | change)

    assert len(str(caught.value)) < 300


def test_a_missing_field_and_a_value_that_is_not_an_object_are_named():
    with pytest.raises(ValueError, match="count is missing"):
        read_record(Whole, {})
    with pytest.raises(ValueError, match="its content is a list with 1 entry; allowed: an object"):
        read_record(Whole, [1])
    with pytest.raises(ValueError, match=r"n+… \(5,000,000 characters\) is an unknown field"):
        read_record(Whole, {"n" * 5_000_000: 1})


# ---- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["domain", "vocabulary", "run", "tensor", "file"])
def test_names_that_cannot_be_part_of_a_path_are_refused(kind):
    for name in ("", ".", "..", "../x", "a/b", "/a", "a\0b", "a\nb", "中" * 5_000_000, 7):
        with pytest.raises(ValueError, match=f"{kind} name .*allowed") as caught:
            check_name(kind, name)

        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("domain", "code_c-2"),
        ("domain", "中文"),
        ("vocabulary", "signs.v2"),
        ("run", "一个 run $1"),
        ("run", "..."),
        ("run", "\udcb2" * 200),
        ("tensor", "adam_m.blocks.0.ffn.up.weight"),
    ],
)
def test_ordinary_names_are_allowed(kind, name):
    assert check_name(kind, name) == name


@pytest.mark.parametrize("kind", ["run", "file"])
@pytest.mark.parametrize("name", ["a\ud800", "\udc00", "\udcb2" * 251])
def test_names_that_no_file_can_have_are_refused(kind, name):
    with pytest.raises(ValueError, match=f"the {kind} name .* allowed"):
        check_name(kind, name)


def test_values_are_shown_on_one_short_line():
    for value in ("x" * 5_000_000, "a\nb", 10**5000, {"a": 1}, [1] * 100_000, None, 1.5, "\ud800"):
        shown = short_repr(value)

        assert len(shown) < 200
        assert "\n" not in shown
        shown.encode("utf-8")


@pytest.mark.parametrize(("kind", "value"), [(list[int], [0] * 5_000_000), (dict[str, int], dict.fromkeys("ab"))])
def test_a_list_or_an_object_of_millions_is_refused_at_once(monkeypatch, kind, value):
    if isinstance(value, dict):
        monkeypatch.setattr("mindpangu.untrusted._MAX_ENTRIES", 1)
    started = time.process_time()

    with pytest.raises(ValueError, match=r"numbers is an? \w+ with [\d,]+ entries; allowed: at most [\d,]+"):
        read_value(kind, value, "numbers")

    assert time.process_time() - started < 1
