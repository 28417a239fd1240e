"""Callbacks of the training loop: each that has started also ends, whatever happens."""

import contextlib
from types import SimpleNamespace

import pytest

from mindpangu.config import load_config
from mindpangu.train.callbacks import Callback
from mindpangu.train.loop import run_steps


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
