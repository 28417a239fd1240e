"""Reads and writes metrics.jsonl, which has one JSON object per step (`StepRecord`).

Lines that do not belong in the file are not deleted: they are moved to another file next to it,
`metrics.jsonl.set_aside-1`.
"""

import contextlib
import itertools
import json
import math
import os
import typing
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from mindpangu.display import describe_error, short_repr, short_text
from mindpangu.files import fsync_folder, open_nofollow, write_bytes_atomically
from mindpangu.train.callbacks import Callback, StepRecord
from mindpangu.untrusted import parse_json, read_bytes

_FILE_LIMIT = 1 << 30  # bytes of the file: some two million steps
_MAX_LINES = 10_000_000  # an empty line is one byte in the file, but many bytes in memory
_INT64 = 1 << 63
_RECORD_BEGINNING = b'{"step": '
_FIELDS = typing.get_type_hints(StepRecord)

Log = Callable[[str], None]


class MetricsFile(Callback):
    """Appends to metrics.jsonl. When training starts or resumes, sets aside all lines but the records of earlier steps,
    and logs the name of the file that has them.

    Args:
        recent_losses: losses of the last steps, as the training remembers them. A file without any of them belongs to
            another run. Empty to accept any file.
        log: receives the messages.
    """

    def __init__(self, path: Path, recent_losses: Sequence[float] = (), log: Log = print):
        self.path = path
        self._recent_losses = recent_losses
        self._log = log
        self._file: TextIO | None = None

    def on_start(self, first_step: int, last_step: int) -> None:
        _set_aside_other_lines(self.path, first_step, self._recent_losses, self._log)
        self._file = open(  # noqa: SIM115 - open for the whole training
            self.path, "a", encoding="utf-8", buffering=1, opener=open_nofollow
        )

    def on_step(self, record: StepRecord) -> None:
        assert self._file is not None
        self._file.write(json.dumps(_without_nan(asdict(record))) + "\n")

    def on_end(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path, log: Log = print) -> list[dict[str, Any]]:
    """Reads the records of metrics.jsonl, ordered by step. Logs which lines it leaves out.

    An incomplete last line, which a kill cut off or which training is still writing, is left out silently.
    """
    try:
        content = MetricsContent.parse(_read(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log(f"{path} cannot be read: {describe_error(error)}; it is left out")
        return []
    if content.problems:
        log(f"{path}: left out {_listing(content.problems)}")
    return [line.record for line in content.lines]


def copy_metrics(source: Path, target: Path, last_step: int, log: Log = print) -> None:
    """Copies the records of the steps up to `last_step`. Sets aside an existing `target` with other content."""
    try:
        content = MetricsContent.parse(_read(source), last_step + 1)
    except FileNotFoundError:
        content = MetricsContent([], {}, [])
    except ValueError as error:
        log(f"{source} cannot be copied: {describe_error(error)}")
        content = MetricsContent([], {}, [])
    if content.problems:
        log(f"{source}: did not copy {_listing(content.problems)}")
    data = _join(line.text for line in content.lines)
    if os.path.lexists(target):
        with contextlib.suppress(ValueError):
            if _read(target) == data:
                return
        log(f"{target} belongs to an earlier training; kept as {set_aside(target).name}")
    write_bytes_atomically(target, data)


def set_aside(path: Path) -> Path:
    """Renames a file, a folder, or anything else to a free name next to it, `NAME.set_aside-1`, …; returns the path."""
    kept = _free_name(path)
    path.rename(kept)
    fsync_folder(path.parent)
    return kept


def _read(path: Path) -> bytes:
    """Reads the file. Raises ValueError if it is too large or not a regular file."""
    data = read_bytes(path, _FILE_LIMIT)
    if data.count(b"\n") > _MAX_LINES:
        raise ValueError(f"it has more than {_MAX_LINES:,} lines")
    return data


@dataclass(frozen=True)
class MetricsLine:
    """One line of metrics.jsonl.

    Attributes:
        number: number of the line in the file, from 1.
        text: bytes of the line, without the newline.
        record: record that the line holds.
    """

    number: int
    text: bytes
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.record["step"])


@dataclass(frozen=True)
class MetricsContent:
    """The content of metrics.jsonl.

    Attributes:
        lines: the lines with a valid record, ordered by step.
        problems: number of every other line → the reason why it does not count.
        text: all lines as they are in the file, without a last line that was cut off.
    """

    lines: list[MetricsLine]
    problems: dict[int, str]
    text: list[bytes]

    @staticmethod
    def parse(data: bytes, before: int | None = None) -> "MetricsContent":
        """Parses the file.

        Args:
            before: keep only the records of steps before this one, because it and later ones are repeated; None keeps
                all.
        """
        whole = data.rstrip(b"\0")  # after a power failure, a file may end in zeros
        text = whole.split(b"\n")
        if not text[-1]:
            text.pop()
        lines = []
        problems = {}
        for number, line in enumerate(text, 1):
            try:
                lines.append(MetricsLine(number, line, _record(line)))
            except ValueError as error:
                problems[number] = str(error)
        if len(text) in problems and not whole.endswith(b"\n") and _may_be_cut(text[-1]):
            del problems[len(text)]
            del text[-1]
        if before is not None:
            problems |= {line.number: f"step {line.step} will be repeated" for line in lines if line.step >= before}
            lines = [line for line in lines if line.step < before]
        kept = _longest_increasing([line.step for line in lines])
        problems |= {
            line.number: f"step {line.step} is not above the one before it"
            for position, line in enumerate(lines)
            if position not in kept
        }
        return MetricsContent([lines[position] for position in sorted(kept)], problems, text)


def _is_number(value: Any) -> bool:
    """True for a number or for null, which stands for NaN and infinities because JSON lacks them."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < _INT64)


_IS_VALID: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: type(value) is int and 0 <= value < _INT64,
    float: _is_number,
    bool: lambda value: type(value) is bool,
    str | None: lambda value: value is None or type(value) is str,
    dict[str, float]: lambda value: type(value) is dict and all(map(_is_number, value.values())),
}
"""Type of a field → function that returns True for a JSON value of this type."""


def _record(line: bytes) -> dict[str, Any]:
    """Parses a line. Raises ValueError if a field is missing or has a value that training cannot have written."""
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    for name, kind in _FIELDS.items():
        if name not in value:
            raise ValueError(f"{name} is missing")
        if not _IS_VALID[kind](value[name]):  # there are many lines, and `read_record` would take five times as long
            raise ValueError(f"{name} is {short_repr(value[name])}")
    if value["step"] < 1:
        raise ValueError(f"step is {value['step']}; allowed: >= 1")
    if value["skipped"] is None and (value["loss"] is None or value["global_norm"] is None):
        raise ValueError("it has no loss or no norm, but was not skipped")
    return value


def _may_be_cut(line: bytes) -> bool:
    return line.startswith(_RECORD_BEGINNING) or _RECORD_BEGINNING.startswith(line)


def _longest_increasing(steps: Sequence[int]) -> Collection[int]:
    """Returns the positions of the longest increasing subsequence of steps; of two equal steps, the later one counts.

    So a step that is far too high or too low costs only its own record.
    """
    lowest_last: list[int] = []  # length of a subsequence - 1 → the lowest step that can end it
    position_of: list[int] = []  # length of a subsequence - 1 → the position of that step
    previous: list[int] = []
    for position, step in enumerate(steps):
        length = bisect_left(lowest_last, step)
        previous.append(position_of[length - 1] if length else -1)
        lowest_last[length : length + 1] = [step]
        position_of[length : length + 1] = [position]
    series = set()
    position = position_of[-1] if position_of else -1
    while position >= 0:
        series.add(position)
        position = previous[position]
    return series


def _set_aside_other_lines(path: Path, first_step: int, recent_losses: Sequence[float], log: Log) -> None:
    """Sets aside every line but the records of steps before `first_step`, which stay in the file."""
    try:
        data = _read(path)
    except FileNotFoundError:
        data = b""
    except ValueError as error:
        log(f"{path} cannot be continued: {describe_error(error)}; kept as {set_aside(path).name}")
        data = b""
    if not data:
        _report_gap(path, 0, first_step, log)
        return
    content = MetricsContent.parse(data, first_step)
    if first_step == 1 and content.text:
        log(f"{path} belongs to an earlier training, and this one starts at step 1; kept as {set_aside(path).name}")
        return
    if _is_of_another_run(content.lines, first_step, recent_losses):
        log(f"{path} belongs to another run: it has none of this run's last losses; kept as {set_aside(path).name}")
        _report_gap(path, 0, first_step, log)
        return
    if content.problems:
        kept = _free_name(path)
        write_bytes_atomically(kept, _join(content.text[number - 1] for number in sorted(content.problems)))
        log(f"{path}: took out {_listing(content.problems)}; kept as {kept.name}")
    remaining = _join(line.text for line in content.lines)
    if remaining != data:
        write_bytes_atomically(path, remaining)
    _report_gap(path, content.lines[-1].step if content.lines else 0, first_step, log)


def _is_of_another_run(lines: Sequence[MetricsLine], first_step: int, recent_losses: Sequence[float]) -> bool:
    """True if there are lines of the last steps, but none of them has a loss that the training remembers.

    A training remembers the losses of the last steps that it did not skip, bit for bit.
    """
    losses = {
        line.record["loss"]
        for line in lines
        if line.step >= first_step - len(recent_losses) and line.record["skipped"] is None
    }
    return bool(losses) and losses.isdisjoint(recent_losses)


def _report_gap(path: Path, last_step: int, first_step: int, log: Log) -> None:
    """Logs which steps have no record. Lines that were not flushed are lost if the machine goes down."""
    if last_step + 1 < first_step:
        log(f"{path} has no records of steps {last_step + 1} to {first_step - 1}; training is not affected")


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.set_aside-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _join(lines: typing.Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _listing(problems: dict[int, str]) -> str:
    """Describes the lines that do not count: how many there are, and why the first few do not."""
    first = "; ".join(f"line {number}: {short_text(problems[number])}" for number in sorted(problems)[:3])
    more = "; …" if len(problems) > 3 else ""
    return f"{len(problems)} {'line' if len(problems) == 1 else 'lines'} ({first}{more})"


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, with null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
