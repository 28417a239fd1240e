"""metrics.jsonl: one JSON object per step, a `StepRecord`. A line leaves the file only for one that is kept aside."""

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

from mindpangu.files import fsync_folder, write_bytes_atomically
from mindpangu.train.callbacks import Callback, StepRecord
from mindpangu.untrusted import parse_json, read_bytes, reason, show, show_text

_LIMIT = 1 << 32  # bytes of the file: some ten million steps
_INT64 = 1 << 63
_BEGINNING = b'{"step": '
_FIELDS = typing.get_type_hints(StepRecord)

Log = Callable[[str], None]


class MetricsFile(Callback):
    """Writes metrics.jsonl. A training that starts or resumes first moves the lines that do not belong before its
    first step to a file beside it, metrics.jsonl.kept_aside-1, -2, …, and logs the name.

    Args:
        recent_losses: the losses of the last steps that the training remembers; a file that has none of them is another
            run's. Empty to accept any.
        log: receives the messages.
    """

    def __init__(self, path: Path, recent_losses: Sequence[float] = (), log: Log = print):
        self.path = path
        self._recent_losses = recent_losses
        self._log = log
        self._file: TextIO | None = None

    def on_start(self, first_step: int, last_step: int) -> None:
        _keep_aside_all_but(self.path, first_step, self._recent_losses, self._log)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open for the whole training

    def on_step(self, record: StepRecord) -> None:
        assert self._file is not None
        self._file.write(json.dumps(_without_nan(asdict(record))) + "\n")

    def on_end(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path, log: Log = print) -> list[dict[str, Any]]:
    """Reads the records of metrics.jsonl, in which the steps increase. Logs what it leaves out.

    A last line that a kill cut off, or that training is just writing, is left out silently.
    """
    try:
        content = MetricsContent.parse(read_bytes(path, _LIMIT))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log(f"{path} cannot be read: {reason(error)}; it is left out")
        return []
    if content.problems:
        log(f"{path}: left out {_listing(content.problems)}")
    return [line.record for line in content.lines]


def copy_metrics(source: Path, target: Path, last_step: int, log: Log = print) -> None:
    """Copies the records of the steps up to `last_step`. What is under the name `target` is kept aside, unless it is
    the same."""
    try:
        content = MetricsContent.parse(read_bytes(source, _LIMIT), last_step + 1)
    except FileNotFoundError:
        content = MetricsContent([], {}, [], False)
    except ValueError as error:
        log(f"{source} cannot be copied: {reason(error)}")
        content = MetricsContent([], {}, [], False)
    if content.problems:
        log(f"{source}: did not copy {_listing(content.problems)}")
    data = _join(line.text for line in content.lines)
    if os.path.lexists(target):
        with contextlib.suppress(ValueError):
            if read_bytes(target, _LIMIT) == data:
                return
        log(f"{target} is of an earlier training; {_moved(keep_aside(target))}")
    write_bytes_atomically(target, data)


def keep_aside(path: Path) -> Path:
    """Renames a file, folder, or anything else to a free name beside it, `NAME.kept_aside-1`, …, and returns that."""
    kept = _free_name(path)
    path.rename(kept)
    fsync_folder(path.parent)
    return kept


@dataclass(frozen=True)
class MetricsLine:
    """One line of metrics.jsonl.

    Attributes:
        number: its number in the file, from 1.
        text: its bytes, without the newline.
        record: its record.
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
        lines: the lines that are records, with increasing steps.
        problems: number of every other line → why it is no record of this file.
        text: all lines as they are in the file.
        is_cut: True if the last line was cut off; it is not in `text`.
    """

    lines: list[MetricsLine]
    problems: dict[int, str]
    text: list[bytes]
    is_cut: bool

    @staticmethod
    def parse(data: bytes, before: int | None = None) -> "MetricsContent":
        """Parses the file.

        Args:
            before: take only the records of steps before this one; None takes all.
        """
        whole = data.rstrip(b"\0")  # after a power cut, a file may end in zeros
        text = whole.split(b"\n")
        if not text[-1]:
            text.pop()
        lines = []
        problems = {}
        is_cut = len(whole) < len(data)
        for number, line in enumerate(text, 1):
            try:
                lines.append(MetricsLine(number, line, _record(line)))
            except ValueError as error:
                problems[number] = str(error)
        if len(text) in problems and not whole.endswith(b"\n") and _may_be_cut(text[-1]):
            del problems[len(text)]
            del text[-1]
            is_cut = True
        if before is not None:
            problems |= {line.number: f"step {line.step} is taken again" for line in lines if line.step >= before}
            lines = [line for line in lines if line.step < before]
        kept = _longest_increasing([line.step for line in lines])
        problems |= {
            line.number: f"step {line.step} is not above the one before it"
            for position, line in enumerate(lines)
            if position not in kept
        }
        return MetricsContent([lines[position] for position in sorted(kept)], problems, text, is_cut)


def _is_number(value: Any) -> bool:
    """True for a number, or for null, which stands for one that is not finite: JSON has no NaN."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < _INT64)


_IS_A: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: type(value) is int and 0 <= value < _INT64,
    float: _is_number,
    bool: lambda value: type(value) is bool,
    str | None: lambda value: value is None or type(value) is str,
    dict[str, float]: lambda value: type(value) is dict and all(map(_is_number, value.values())),
}
"""Type of a field → whether a JSON value can be one."""


def _record(line: bytes) -> dict[str, Any]:
    """Returns the record of a line. Raises ValueError if a field is missing or is not what training writes."""
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    for name, kind in _FIELDS.items():
        if name not in value:
            raise ValueError(f"{name} is missing")
        if not _IS_A[kind](value[name]):  # `untrusted.read_record` takes five times as long, and there are many lines
            raise ValueError(f"{name} is {show(value[name])}")
    if value["step"] < 1:
        raise ValueError(f"step is {value['step']}; allowed: >= 1")
    if value["skipped"] is None and (value["loss"] is None or value["global_norm"] is None):
        raise ValueError("it has no loss or no norm, but was not skipped")
    return value


def _may_be_cut(line: bytes) -> bool:
    return line.startswith(_BEGINNING) or _BEGINNING.startswith(line)


def _longest_increasing(steps: Sequence[int]) -> Collection[int]:
    """Returns the positions of the longest series of increasing steps; of two equal ones it takes the later.

    One step that is far too high or too low costs only its own record.
    """
    lowest_last: list[int] = []  # by length of a series: the lowest step that ends one
    position_of: list[int] = []  # and the position of this step
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


def _keep_aside_all_but(path: Path, first_step: int, recent_losses: Sequence[float], log: Log) -> None:
    """Leaves the records of the steps before `first_step` in the file, and keeps all others aside."""
    try:
        data = read_bytes(path, _LIMIT)
    except FileNotFoundError:
        data = b""
    except ValueError as error:
        log(f"{path} cannot be continued: {reason(error)}; {_moved(keep_aside(path))}")
        data = b""
    if not data:
        _report_gap(path, 0, first_step, log)
        return
    content = MetricsContent.parse(data, first_step)
    if first_step == 1 and content.text:
        log(f"{path} is of an earlier training, and this one starts at step 1; {_moved(keep_aside(path))}")
        return
    if _is_of_another_run(content.lines, first_step, recent_losses):
        log(f"{path} is of another run: it has none of the last losses of this one; {_moved(keep_aside(path))}")
        _report_gap(path, 0, first_step, log)
        return
    if content.problems:
        kept = _free_name(path)
        write_bytes_atomically(kept, _join(content.text[number - 1] for number in sorted(content.problems)))
        log(f"{path}: {_listing(content.problems)}; {_moved(kept)}")
    remaining = _join(line.text for line in content.lines)
    if remaining != data:
        write_bytes_atomically(path, remaining)
    _report_gap(path, content.lines[-1].step if content.lines else 0, first_step, log)


def _is_of_another_run(lines: Sequence[MetricsLine], first_step: int, recent_losses: Sequence[float]) -> bool:
    """True if the lines are of steps whose losses the training remembers, and none of these losses is theirs.

    A training remembers the losses of the last steps that it did not skip, bit for bit.
    """
    losses = {
        line.record["loss"]
        for line in lines
        if line.step >= first_step - len(recent_losses) and line.record["skipped"] is None
    }
    return bool(losses) and losses.isdisjoint(recent_losses)


def _report_gap(path: Path, last_step: int, first_step: int, log: Log) -> None:
    """Says which steps have no record; what is not flushed is lost if the machine goes down."""
    if last_step + 1 < first_step:
        log(f"{path} has no records of steps {last_step + 1} to {first_step - 1}; training is not affected")


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.kept_aside-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _moved(kept: Path) -> str:
    return f"kept as {kept.name}"


def _join(lines: typing.Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _listing(problems: dict[int, str]) -> str:
    """Puts the lines that are no records, and the first reasons, into words."""
    first = "; ".join(f"line {number}: {show_text(problems[number])}" for number in sorted(problems)[:3])
    more = "; …" if len(problems) > 3 else ""
    return f"{len(problems)} {'line' if len(problems) == 1 else 'lines'} ({first}{more})"


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, with null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
