"""The stream of planned steps: their order, what is planned ahead, and the thread that does it."""

import threading
import time
from types import SimpleNamespace

import pytest

from mindpangu.train.stream import StepStream


class Steps:
    """A loader and a planner whose steps are numbers from 1; the loader fails before step `fails_at`."""

    def __init__(self, fails_at=0):
        self.loaded = 0
        self.threads = set()
        self._fails_at = fails_at

    def next_step(self):
        self.threads.add(threading.current_thread())
        if self.loaded + 1 == self._fails_at:
            raise OSError("the shard is gone")
        self.loaded += 1
        return SimpleNamespace(micro_batches=[f"batch {self.loaded}"], next_state={"step": self.loaded})

    def plan_step(self, micro_batches):
        self.threads.add(threading.current_thread())
        return f"plan of {micro_batches}"


@pytest.fixture
def opened():
    """opened(fails_at=0) returns (stream, its `Steps`)."""
    streams = []

    def make(fails_at=0):
        steps = Steps(fails_at)
        streams.append(StepStream(steps, steps))
        return streams[-1], steps

    yield make
    for stream in streams:
        stream.close()


def test_steps_come_in_order_each_with_the_state_after_it(opened):
    stream, _ = opened()

    steps = [stream.next() for _ in range(5)]

    assert [step.plan for step in steps] == [f"plan of ['batch {number}']" for number in range(1, 6)]
    assert [step.loader_state for step in steps] == [{"step": number} for number in range(1, 6)]


def test_a_look_ahead_takes_no_step(opened):
    stream, _ = opened()

    for number in (1, 2, 3):
        assert stream.peek() is stream.peek()
        assert stream.peek().loader_state == {"step": number}
        assert stream.next().loader_state == {"step": number}


def test_two_steps_are_planned_ahead_in_one_other_thread(opened):
    stream, steps = opened()

    until = time.monotonic() + 20
    while steps.loaded < 2:
        assert time.monotonic() < until
        time.sleep(0.001)
    time.sleep(0.05)
    stream.close()

    assert steps.loaded == 2
    (thread,) = steps.threads
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_an_error_of_the_loader_is_raised_at_its_step(opened):
    stream, _ = opened(fails_at=2)

    assert stream.next().loader_state == {"step": 1}
    for read in (stream.peek, stream.next):
        with pytest.raises(OSError, match="the shard is gone"):
            read()
