"""Callbacks of the training loop: each that has started also ends, whatever happens; the lines that users see."""

import contextlib
import sys
from types import SimpleNamespace

import pytest

from mindpangu.config import load_config
from mindpangu.train import callbacks as module
from mindpangu.train.callbacks import Callback, Progress, step_line
from mindpangu.train.loop import run_steps
from tests.train.step_records import step_record


class Recorder(Callback):
    """Adds its name to `ended`, and fails in one of its hooks if told to."""

    def __init__(self, name, ended, fails_in=""):
        self.name = name
        self.ended = ended
        self.fails_in = fails_in

    def on_start(self, first_step, last_step):
        if self.fails_in == "on_start":
            raise OSError(f"{self.name} cannot start")

    def on_end(self):
        self.ended.append(self.name)
        if self.fails_in == "on_end":
            raise OSError(f"{self.name} cannot end")


def run(callbacks, error):
    """Starts a training whose first step raises `error`."""

    def fail():
        raise error

    step = SimpleNamespace(
        config=load_config(None, {"training.steps": "20"}),
        processes=SimpleNamespace(report_status=lambda *words: None),
    )
    run_steps(step, SimpleNamespace(next=fail), 1, callbacks, contextlib.nullcontext(), lambda number: 0.1)


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(28, "no space"), KeyboardInterrupt()])
def test_callbacks_end_in_reverse_after_an_error(error):
    ended = []

    with pytest.raises(type(error)):
        run([Recorder(name, ended) for name in ("first", "second", "third")], error)

    assert ended == ["third", "second", "first"]


def test_only_callbacks_that_started_end():
    ended = []
    callbacks = [Recorder("first", ended), Recorder("second", ended, "on_start"), Recorder("third", ended)]

    with pytest.raises(OSError, match="second cannot start"):
        run(callbacks, ValueError("never raised"))

    assert ended == ["first"]


def test_a_callback_that_fails_to_end_does_not_keep_others_from_ending():
    ended = []
    callbacks = [Recorder("first", ended), Recorder("second", ended, "on_end")]
    error = ValueError("a fault")

    with pytest.raises(OSError, match="second cannot end") as raised:
        run(callbacks, error)

    assert ended == ["second", "first"]
    assert raised.value.__context__ is error


def record(step, skipped=None):
    return step_record(
        step,
        loss=2.34567,
        lr=0.00123456,
        global_norm=1.23456,
        overflow=skipped is not None,
        loss_scale=65536.0,
        per_step_time=0.1234,
        tokens_per_s=4321.6,
        imbalance=1.256,
        experts_activated=12,
        bytes_to_device=3_450_000,
        bytes_to_host=1_260_000,
        wait_s=0.0456,
        domains={"zh": 2.1, "en": 2.71828},
        skipped=skipped,
    )


def test_a_step_line_has_the_names_and_units_that_users_know():
    assert step_line(record(7), 120) == (
        "step:[  7/120], loss: 2.3457, lr: 1.235e-03, global_norm: 1.235, overflow cond: False, loss_scale: 65536, "
        "per_step_time: 123ms, tokens/s: 4322, imbalance: 1.26, experts: 12, to_device: 3.5MB, to_host: 1.3MB, "
        "wait: 46ms, domains: zh 2.100 en 2.718"
    )
    assert step_line(record(120, "loss is nan"), 120).endswith("domains: zh 2.100 en 2.718, SKIPPED: loss is nan")


def take_steps(progress, last=10, skipped=3):
    progress.on_start(1, last)
    for step in range(1, last + 1):
        progress.on_step(record(step, "loss is nan" if step == skipped else None))
    progress.on_message("a message")
    progress.on_end()


def steps_of(text):
    return [line[len("step:[") :].split("/")[0].strip() for line in text.splitlines() if line.startswith("step:[")]


def test_every_few_steps_the_last_and_the_skipped_ones_have_a_line(tmp_path, capsys):
    log = tmp_path / "log" / "rank_0" / "info.log"

    take_steps(Progress(4, log))

    printed = capsys.readouterr().out
    assert steps_of(printed) == ["3", "4", "8", "10"]
    assert printed.endswith("\na message\n")
    assert log.read_text() == printed


def test_a_log_is_added_to_and_holds_names_that_are_not_utf_8(tmp_path):
    log = tmp_path / "info.log"
    log.write_text("of an earlier training\n")
    progress = Progress(4, log, quiet=True)

    progress.on_start(1, 1)
    progress.on_message("the file \udcff")
    assert log.read_text() == "of an earlier training\nthe file \\udcff\n"  # at once
    progress.on_end()


def test_a_quiet_rank_writes_its_log_and_prints_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = tmp_path / "info.log"

    take_steps(Progress(4, log, quiet=True))

    assert steps_of(log.read_text()) == ["3", "4", "8", "10"]
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_without_a_log_the_lines_are_only_printed(capsys):
    take_steps(Progress(5), skipped=None)
    assert steps_of(capsys.readouterr().out) == ["5", "10"]


def test_a_closed_output_costs_no_line_of_the_log(tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())

    take_steps(Progress(4, tmp_path / "info.log"))

    assert steps_of((tmp_path / "info.log").read_text()) == ["3", "4", "8", "10"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_has_a_bar_of_all_steps(monkeypatch, capsys, is_terminal):
    class Bar:
        def __init__(self, **options):
            self.options = options
            self.steps = 0
            self.is_open = True
            bars.append(self)

        @staticmethod
        def write(text, file):
            file.write(text + "\n")

        def update(self):
            self.steps += 1

        def close(self):
            self.is_open = False

    bars = []
    monkeypatch.setattr(module, "tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    progress = Progress(5)

    progress.on_start(7, 10)
    for step in (7, 8, 9, 10):
        progress.on_step(record(step))
    progress.on_end()

    assert steps_of(capsys.readouterr().out) == ["10"]
    assert len(bars) == is_terminal
    for bar in bars:
        assert (bar.options["total"], bar.options["initial"]) == (10, 6)
        assert (bar.steps, bar.is_open) == (4, False)


def test_the_hooks_of_a_callback_do_nothing_by_default():
    callback = Callback()
    assert (
        callback.on_start(1, 2) is callback.on_step(record(1)) is callback.on_message("") is callback.on_end() is None
    )
