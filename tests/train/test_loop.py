"""The training loop by itself: what it saves, when it ends, and what its callbacks see. No model, no files."""

import math
import os
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.errors import TrainingError
from mindpangu.experts import ExpertTraffic
from mindpangu.parallel.mesh import Mesh
from mindpangu.signals import STOP_SIGNALS as SIGNALS
from mindpangu.train.callbacks import Callback
from mindpangu.train.loop import TrainingStopped, name_batches, run_steps
from mindpangu.train.step import StepResult


def result(loss=1.0, skipped=None, lowered=False):
    return StepResult(loss, 2.0, skipped, {1: 0.5}, ExpertTraffic(activated=3), 1.0, lowered)


class Step:
    """A train step with given results (an exception is raised); records what it is called with."""

    def __init__(self, results, stop_at=None, **overrides):
        overrides = (
            {"training.steps": len(results), "checkpoint.save_steps": 3, "training.max_skipped_steps": 3}
            | {"lr_scheduler.warmup_steps": 0}
            | {key.replace("__", "."): value for key, value in overrides.items()}
        )
        self.config = load_config(None, {key: str(value) for key, value in overrides.items()})
        self.model = SimpleNamespace(domains=[SimpleNamespace(name="zh"), SimpleNamespace(name="en")])
        self.processes = SimpleNamespace(
            mesh=Mesh(data=2),
            report_status=lambda *words: None,
            any_ranks=lambda flags: [len(self.calls) == stop_at] * len(flags),
        )
        self.calls = []
        self._results = iter(results)

    def run(self, batches, plans, rate, upcoming, num_targets):
        self.calls.append((plans, rate, upcoming, num_targets))
        outcome = next(self._results)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Stream:
    """Planned steps; the loader state after a step is its number."""

    def __init__(self):
        self._step = 0

    def _planned(self, step):
        batch = SimpleNamespace(tokens_BS=np.zeros((2, 5)), sample_ids_B2=np.array([[0, step], [1, 7]]))
        plans = Plans(step, [SimpleNamespace(imbalance=lambda: 1.0), SimpleNamespace(imbalance=lambda: 3.0)])
        plan = SimpleNamespace(batches=(batch, batch), plans=plans, num_targets=10.0 * step)
        return SimpleNamespace(plan=plan, loader_state={"step": step})

    def next(self):
        self._step += 1
        return self._planned(self._step)

    def peek(self):
        return self._planned(self._step + 1)


class Plans(list):
    """A list of route plans that knows its step."""

    def __init__(self, step, plans):
        super().__init__(plans)
        self.step = step


class Checkpointer:
    def __init__(self):
        self.saved = []
        self.is_open = False

    def __enter__(self):
        self.is_open = True

    def __exit__(self, *_):
        self.is_open = False

    def poll(self): ...

    def save(self, step, state):
        assert self.is_open
        self.saved.append((step, state["step"]))


class Recorder(Callback):
    def __init__(self):
        self.calls = []
        self.records = []
        self.messages = []

    def on_start(self, first_step, last_step):
        self.calls.append(("start", first_step, last_step))

    def on_step(self, record):
        self.calls.append(("step", record.step))
        self.records.append(record)

    def on_message(self, text):
        self.messages.append(text)

    def on_end(self):
        self.calls.append(("end",))


class Failing(Callback):
    def on_step(self, record):
        raise OSError("no space")


def run(step, *callbacks, first_step=1):
    checkpointer = Checkpointer()
    finished = run_steps(step, Stream(), first_step, callbacks, checkpointer, lambda number: number / 10)
    return finished, checkpointer.saved


def test_every_save_steps_and_the_last_step_are_saved_with_the_state_after_them():
    finished, saved = run(Step([result()] * 7))
    assert finished == 7
    assert saved == [(3, 3), (6, 6), (7, 7)]


def test_a_last_step_that_is_saved_anyway_is_saved_once():
    assert run(Step([result()] * 6))[1] == [(3, 3), (6, 6)]


def test_every_step_has_its_rate_and_the_plans_of_the_next():
    step = Step([result()] * 3)

    run(step)

    seen = [(plans.step, rate, upcoming and upcoming.step, targets) for plans, rate, upcoming, targets in step.calls]
    assert seen == [(1, 0.1, 2, 10.0), (2, 0.2, 3, 20.0), (3, 0.3, None, 30.0)]


def test_a_signal_on_any_rank_ends_training_after_the_step_with_a_checkpoint():
    recorder = Recorder()

    checkpointer = Checkpointer()

    with pytest.raises(TrainingStopped) as stopped:
        run_steps(Step([result()] * 9, stop_at=4), Stream(), 1, [recorder], checkpointer, lambda number: number / 10)

    assert stopped.value.step == 4
    assert checkpointer.saved == [(3, 3), (4, 4)]
    assert recorder.calls[-1] == ("end",)


def test_a_training_whose_last_step_is_done_saves_nothing():
    assert run(Step([result()] * 3), first_step=4) == (3, [])


def test_a_signal_during_the_last_step_changes_nothing():
    assert run(Step([result()] * 4, stop_at=4)) == (4, [(3, 3), (4, 4)])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("comes_to", ["this rank", "another"])
def test_training_stops_by_the_signal_that_came_to_any_rank(signum, comes_to):
    step = Step([result()] * 9)
    flags = []

    def any_ranks(mine):
        flags.append(mine)
        if len(flags) == 1 and comes_to == "this rank":
            os.kill(os.getpid(), signum)  # after its flags were read
        others = [comes_to == "another" and len(flags) == 2 and each == signum for each in SIGNALS]
        return [one or other for one, other in zip(mine, others, strict=True)]

    step.processes.any_ranks = any_ranks

    with pytest.raises(TrainingStopped) as stopped:
        run(step)

    assert (stopped.value.signum, stopped.value.step) == (signum, 2)
    assert flags == [[False] * 3, [comes_to == "this rank" and each == signum for each in SIGNALS]]


def test_a_resumed_training_takes_the_remaining_steps():
    recorder = Recorder()
    step = Step([result()] * 3, training__steps=7)
    reports = []
    step.processes.report_status = lambda *words: reports.append(words)

    finished, saved = run(step, recorder, first_step=5)

    assert finished == 7
    assert [number for number, _ in saved] == [6, 7]
    assert recorder.calls == [("start", 5, 7), ("step", 5), ("step", 6), ("step", 7), ("end",)]
    assert reports == [(number, "waiting for its batches") for number in (5, 6, 7)]


def test_after_every_step_a_checkpoint_may_be_reported():
    checkpointer = Checkpointer()
    polls = []
    checkpointer.poll = lambda: polls.append(list(checkpointer.saved))

    run_steps(Step([result()] * 4), Stream(), 1, (), checkpointer, lambda number: 0.1)

    assert polls == [[], [], [], [(3, 3)]]


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()])
def test_callbacks_end_even_after_an_error(error):
    one = Recorder()
    other = Recorder()
    step = Step([result(), error])

    with pytest.raises(type(error)):
        run(step, one, other)

    assert one.calls == other.calls == [("start", 1, 2), ("step", 1), ("end",)]


def test_callbacks_end_even_if_one_of_them_fails():
    recorder = Recorder()

    with pytest.raises(OSError, match="no space"):
        run(Step([result()] * 3), recorder, Failing())

    assert recorder.calls == [("start", 1, 3), ("step", 1), ("end",)]


def test_skipped_steps_are_named_with_their_samples():
    recorder = Recorder()

    run(Step([result(), result(skipped="loss is nan"), result()]), recorder)

    assert recorder.messages == [
        "step 2 was skipped (loss is nan); its batch: zh samples [2, 2]; en samples [7, 7]",
    ]
    assert [record.skipped for record in recorder.records] == [None, "loss is nan", None]


def test_training_gives_up_after_too_many_skipped_steps_in_a_row_and_saves_first():
    skipped = result(skipped="loss is nan")
    checkpointer = Checkpointer()
    step = Step([skipped, skipped, result(), skipped, skipped, skipped, result()], checkpoint__save_steps=100)

    with pytest.raises(TrainingError, match="3 steps in a row were skipped, the last one because loss is nan"):
        run_steps(step, Stream(), 1, (), checkpointer, lambda number: 0.1)

    assert len(step.calls) == 6
    assert checkpointer.saved == [(6, 6)]


def test_steps_that_lower_the_loss_scale_are_not_counted_and_do_not_end_a_row():
    skipped = result(skipped="loss is nan")
    lowered = result(skipped="loss is nan; the loss scale goes from 4 to 2", lowered=True)
    step = Step([skipped, lowered, lowered, lowered, skipped, lowered, skipped, result()])

    with pytest.raises(TrainingError, match="3 steps in a row"):
        run(step)

    assert len(step.calls) == 7


def test_a_record_describes_its_step(monkeypatch):
    monkeypatch.setattr(
        resource, "getrusage", lambda who: {resource.RUSAGE_SELF: SimpleNamespace(ru_maxrss=3 << 20)}[who]
    )
    recorder = Recorder()

    run(Step([result(), result(loss=math.inf)]), recorder)

    first, second = recorder.records
    assert (first.loss, first.lr, first.global_norm, first.experts_activated) == (1.0, 0.1, 2.0, 3)
    assert first.imbalance == 2.0
    assert 0 < first.per_step_time < 60
    assert first.domains == {"en": 0.5}
    assert first.tokens_per_s * first.per_step_time == pytest.approx(2 * 2 * 10)  # ranks · micro-batches · tokens
    assert (first.overflow, second.overflow) == (False, True)
    assert first.peak_memory == 3  # GiB


def test_a_record_has_the_costs_of_the_experts_and_the_losses_in_the_order_of_the_domains():
    traffic = ExpertTraffic(3, bytes_to_device=4, bytes_to_host=5, lookup_s=0.6, update_s=0.7, wait_s=0.8)
    recorder = Recorder()

    run(Step([StepResult(1.0, math.nan, "norm is nan", {1: 0.5, 0: 0.25}, traffic, 8.0, True)]), recorder)

    (record,) = recorder.records
    assert (record.experts_activated, record.bytes_to_device, record.bytes_to_host) == (3, 4, 5)
    assert (record.lookup_s, record.update_s, record.wait_s) == (0.6, 0.7, 0.8)
    assert list(record.domains.items()) == [("zh", 0.25), ("en", 0.5)]
    assert (record.step, record.loss_scale, record.overflow, record.skipped) == (1, 8.0, True, "norm is nan")


def test_batches_are_named_by_domain():
    batch = SimpleNamespace(sample_ids_B2=np.array([[1, 5], [0, 2], [1, 9]]))
    assert name_batches([batch, batch], ["zh", "en"]) == "en samples [5, 9, 5, 9]; zh samples [2, 2]"
