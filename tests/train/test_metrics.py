"""metrics.jsonl: a training that starts or resumes loses no line of it, whatever is in the file or in its place."""

import json
import os
import re
from dataclasses import asdict

import pytest

from mindpangu.train.metrics import MetricsFile, copy_metrics, read_metrics
from tests.train.step_records import step_record

LAST = 61


def line(number, **changes):
    return json.dumps(asdict(step_record(number)) | changes).encode() + b"\n"


def lines(first=1, last=LAST):
    return [line(step) for step in range(first, last + 1)]


def resume(path, after, recent_losses=()):
    """Resumes after a step, takes one more, and returns the messages."""
    messages = []
    metrics = MetricsFile(path, recent_losses, messages.append)
    metrics.on_start(after + 1, after + 1)
    metrics.on_step(step_record(after + 1))
    metrics.on_end()
    return messages


def set_aside(path):
    return sorted(path.parent.glob(f"{path.name}.set_aside-*"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_an_intact_file_is_only_appended_to(path):
    path.write_bytes(b"".join(lines()))
    inode = path.stat().st_ino

    messages = resume(path, LAST)

    assert path.read_bytes() == b"".join(lines(last=LAST + 1))
    assert path.stat().st_ino == inode
    assert messages == []


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 62, "lo', line(62)[:-2], b'{"s', b"\0" * 700, b'{"step": 62, "loss": 6.' + b"\0" * 700, line(62)[:-1]],
    ids=["cut", "one byte short", "three bytes", "zeros", "cut, then zeros", "no newline"],
)
def test_a_truncated_last_line_is_dropped(path, tail):
    path.write_bytes(b"".join(lines()) + tail)

    resume(path, 62 if tail == line(62)[:-1] else LAST)

    assert [each["step"] for each in read_metrics(path)] == [*range(1, len(read_metrics(path)) + 1)]
    assert len(read_metrics(path)) >= LAST + 1
    assert path.read_bytes().startswith(b"".join(lines()))
    assert not set_aside(path)


BAD_LINES = {
    "a byte that is not UTF-8": line(10).replace(b'"zh"', b'"\xffzh"'),
    "not JSON": b"}{\n",
    "a list": b"[1, 2]\n",
    "nested too deeply": b"[" * 100_000 + b"\n",
    "an empty line": b"\n",
    "zeros": b"\0\0\0\n",
    "a key twice": line(10)[:-2] + b', "step": 10}\n',
    "a missing field": b'{"step": 10}\n',
    "a step that is text": line(10, step="10"),
    "a step that is true": line(10, step=True),
    "a step that is a fraction": line(10, step=10.0),
    "a step that is null": line(10, step=None),
    "step 0": line(10, step=0),
    "a negative step": line(10, step=-10),
    "a huge step": line(10, step=10**40),
    "a step of 64 bits": line(10, step=1 << 63),
    "a step too high": line(10, step=45),
    "a step too low": line(10, step=3),
    "a loss that is text": line(10, loss="6.0"),
    "a loss that is NaN": line(10, loss=float("nan")),
    "no loss of a step that was taken": line(10, loss=None),
    "no norm of a step that was taken": line(10, global_norm=None),
    "a loss of 64 bits": line(10, loss=1 << 63),
    "a rate that is true": line(10, lr=True),
    "a count below zero": line(10, experts_activated=-1),
    "an overflow that is a number": line(10, overflow=0),
    "a reason that is a number": line(10, skipped=0),
    "a domain's loss that is text": line(10, domains={"zh": 6.0, "en": "6.0"}),
    "domains that are a list": line(10, domains=["zh"]),
    "two records in one line": line(10)[:-1] + line(10),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_set_aside_and_all_others_stay(path, bad):
    content = lines()
    content[9] = bad
    path.write_bytes(b"".join(content))

    messages = resume(path, LAST)

    (kept,) = set_aside(path)
    assert kept.read_bytes() == bad
    assert path.read_bytes() == b"".join([*lines(last=9), *lines(11, LAST + 1)])
    assert len(messages) == 1
    assert "1 line (line 10: " in messages[0]
    assert kept.name in messages[0]
    assert len(messages[0]) < 400


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_reader_leaves_out_a_bad_line_and_says_so(path, bad, capsys):
    content = lines()
    content[9] = bad
    path.write_bytes(b"".join(content))

    records = read_metrics(path)

    assert [each["step"] for each in records] == [step for step in range(1, LAST + 1) if step != 10]
    assert "left out 1 line (line 10: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 6, "lr": -1, "tokens_per_s": None, "domains": {}},
        {"experts_activated": 0, "bytes_to_host": (1 << 63) - 1, "lookup_s": 1 - (1 << 63), "domains": {"zh": None}},
        {"loss": None, "overflow": True, "skipped": "loss is nan"},
        {"global_norm": None, "skipped": ""},
        {"of a later version": 1},
    ],
)
def test_a_record_may_have_any_value_of_its_types(path, changes):
    path.write_bytes(b"".join([*lines(last=9), line(10, **changes), *lines(11)]))
    before = path.read_bytes()

    assert resume(path, LAST) == []

    assert path.read_bytes() == before + line(LAST + 1)
    assert read_metrics(path)[9] == asdict(step_record(10)) | changes


@pytest.mark.parametrize(
    ("count", "listing"),
    [
        (1, r"1 line \(line 3: it is not an object\);"),
        (3, r"3 lines \(line 3: [^;]*; line 4: [^;]*; line 5: it is not an object\);"),
        (4, r"4 lines \(line 3: [^;]*; line 4: [^;]*; line 5: it is not an object; …\);"),
    ],
)
def test_a_message_names_three_bad_lines_and_counts_all(path, count, listing):
    path.write_bytes(b"".join([*lines(last=2), *[b"[]\n"] * count, *lines(3)]))

    (message,) = resume(path, LAST)

    assert re.search(listing, message)


@pytest.mark.parametrize("content", [None, b"", b"}{\n", b'{"step": 1'])
def test_a_training_without_any_record_of_its_steps_says_so(path, content):
    if content is not None:
        path.write_bytes(content)

    messages = resume(path, 5)

    assert f"{path} has no records of steps 1 to 5; training is not affected" in messages


def test_a_training_that_begins_misses_no_records(path):
    path.write_bytes(b'{"step": 1')
    assert resume(path, 0) == []


def test_a_last_line_that_is_not_a_truncated_record_is_set_aside(path):
    path.write_bytes(b"".join(lines()) + b"a note of mine")

    resume(path, LAST)

    assert [kept.read_bytes() for kept in set_aside(path)] == [b"a note of mine\n"]
    assert path.read_bytes() == b"".join(lines(last=LAST + 1))


def test_steps_after_the_checkpoint_are_set_aside(path):
    path.write_bytes(b"".join(lines()))

    messages = resume(path, 50)

    (kept,) = set_aside(path)
    assert kept.read_bytes() == b"".join(lines(51))
    assert path.read_bytes() == b"".join(lines(last=51))
    assert "11 lines (line 51: step 51 will be repeated; " in messages[0]
    assert messages[0].endswith("kept as metrics.jsonl.set_aside-1")


def test_nothing_that_was_set_aside_is_overwritten(path):
    for _ in range(3):
        path.write_bytes(b"".join(lines()))
        resume(path, 60)

    assert [kept.name[-1] for kept in set_aside(path)] == ["1", "2", "3"]
    assert {kept.read_bytes() for kept in set_aside(path)} == {line(61)}


def test_a_training_that_starts_anew_keeps_the_earlier_file_whole(path):
    content = b"".join([*lines(), b"}{\n", b"cut"])
    path.write_bytes(content)

    messages = resume(path, 0)

    assert [kept.read_bytes() for kept in set_aside(path)] == [content]
    assert path.read_bytes() == line(1)
    assert "belongs to an earlier training" in messages[0]


def test_the_file_of_another_run_is_set_aside(path):
    content = b"".join(lines())
    path.write_bytes(content)
    own_losses = [5.0 + step / 64 for step in range(50, LAST + 1)]

    messages = resume(path, LAST, own_losses)

    assert [kept.read_bytes() for kept in set_aside(path)] == [content]
    assert path.read_bytes() == line(LAST + 1)
    assert "belongs to another run" in messages[0]
    assert "no records of steps 1 to 61" in messages[1]


def test_a_runs_own_file_is_recognised_by_any_of_its_last_losses(path):
    content = lines()
    content[57] = line(58, loss=7.5)  # one altered digit
    content[59] = line(60, loss=None, global_norm=None, skipped="loss is nan")
    path.write_bytes(b"".join(content[:60]))
    remembered = [6.0 + step / 64 for step in range(50, LAST + 1) if step != 60]

    messages = resume(path, LAST, remembered)

    assert not set_aside(path)
    assert path.read_bytes() == b"".join([*content[:60], line(LAST + 1)])
    assert "no records of steps 61 to 61" in messages[0]


def in_place_of(path, kind):
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link":
        (path.parent / "elsewhere").write_bytes(b"".join(lines()))
        path.symlink_to("elsewhere")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link", "dangling link", "device"])
def test_anything_in_place_of_the_file_is_set_aside(path, kind, capsys):
    in_place_of(path, kind)
    before = os.lstat(path).st_ino

    assert read_metrics(path) == []
    assert "left out" in capsys.readouterr().out
    messages = resume(path, LAST)

    (kept,) = set_aside(path)
    assert os.lstat(kept).st_ino == before
    assert path.read_bytes() == line(LAST + 1)
    assert kept.name in messages[0]


def test_a_copy_holds_the_records_up_to_a_step_and_keeps_what_was_there(tmp_path, path):
    source = tmp_path / "source.jsonl"
    source.write_bytes(b"".join([*lines(), b"}{\n"]))
    path.write_bytes(b"mine\n")
    messages = []

    for _ in range(2):  # the second time it finds its own copy
        copy_metrics(source, path, 60, messages.append)

    assert path.read_bytes() == b"".join(lines(last=60))
    assert [kept.read_bytes() for kept in set_aside(path)] == [b"mine\n"]
    assert "did not copy 2 lines" in messages[0]


def test_a_copy_of_what_is_not_there_or_cannot_be_read_is_empty(tmp_path, path):
    messages = []
    copy_metrics(tmp_path / "absent.jsonl", path, 60, messages.append)
    assert (path.read_bytes(), messages) == (b"", [])

    (tmp_path / "folder").mkdir()
    copy_metrics(tmp_path / "folder", path, 60, messages.append)

    assert path.read_bytes() == b""
    assert not set_aside(path)
    (message,) = messages
    assert message.startswith(f"{tmp_path / 'folder'} cannot be copied: ")


def test_numbers_that_are_not_finite_are_null_and_read_back(path):
    metrics = MetricsFile(path)
    metrics.on_start(1, 1)
    skipped = step_record(1, loss=float("nan"), global_norm=float("inf"), domains={"zh": float("nan")}, skipped="nan")
    metrics.on_step(skipped)
    metrics.on_end()

    (found,) = read_metrics(path)

    assert (found["loss"], found["global_norm"], found["domains"]) == (None, None, {"zh": None})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: os.truncate(path, 10 << 30), r"it has 10,737,418,240 bytes; allowed: at most"),
        (lambda path: path.write_bytes(b"\n" * 10_000_001), r"it has more than 10,000,000 lines"),
    ],
    ids=["10 GB", "lines"],
)
def test_a_file_too_large_for_memory_is_set_aside_unread(path, make, reason):
    path.touch()
    make(path)
    size = path.stat().st_size

    messages = resume(path, LAST)

    (kept,) = set_aside(path)
    assert re.search(reason, messages[0])
    assert kept.stat().st_size == size
    assert [each["step"] for each in read_metrics(path)] == [LAST + 1]


def test_a_line_of_megabytes_is_one_bad_line(path):
    path.write_bytes(b"".join([*lines(last=5), b'{"step": "' + b"x" * 5_000_000 + b'"}\n', *lines(6)]))

    messages = resume(path, LAST)

    assert "1 line (line 6: step is 'xxx" in messages[0]
    assert len(messages[0]) < 1000
    assert [each["step"] for each in read_metrics(path)] == list(range(1, LAST + 2))
