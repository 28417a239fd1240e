"""Learning rate and spike skipping."""

import math

import pytest

from mindpangu.config import LrSchedulerConfig
from mindpangu.train.schedule import learning_rate
from mindpangu.train.spikes import SpikeGuard


def test_the_rate_warms_up_and_falls_to_its_end():
    schedule = LrSchedulerConfig(learning_rate=1.0, lr_end=0.1, warmup_steps=10, decay_steps=110)

    assert learning_rate(schedule, 1) == pytest.approx(0.1)
    assert learning_rate(schedule, 10) == pytest.approx(1.0)
    assert learning_rate(schedule, 60) == pytest.approx(0.55)  # half of the cosine
    assert learning_rate(schedule, 110) == pytest.approx(0.1)
    assert learning_rate(schedule, 500) == pytest.approx(0.1)


def test_without_warm_up_the_first_rate_is_near_the_peak():
    schedule = LrSchedulerConfig(learning_rate=1.0, lr_end=0.0, warmup_steps=0, decay_steps=10)
    assert 0.9 < learning_rate(schedule, 1) < 1.0


def accept_steady_steps(guard, count):
    for i in range(count):
        assert guard.reason_to_skip({"loss": 5 + 0.1 * (i % 2), "global_norm": 1.0 + 0.01 * (i % 3)}) is None


def test_non_finite_steps_are_always_skipped():
    guard = SpikeGuard(sigma=0, window=8)

    assert guard.reason_to_skip({"loss": math.nan, "global_norm": 1.0}) == "loss is nan"
    assert guard.reason_to_skip({"loss": 1.0, "global_norm": math.inf}) == "global_norm is inf"
    assert guard.state() == {"loss": [], "global_norm": []}


def test_a_spike_is_skipped_and_not_recorded():
    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 7)
    assert guard.reason_to_skip({"loss": 50.0, "global_norm": 1.0}) is None  # not yet half full
    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 8)
    recorded = guard.state()

    assert "global_norm 9 is above" in guard.reason_to_skip({"loss": 5.0, "global_norm": 9.0})
    assert guard.state() == recorded
    accept_steady_steps(guard, 20)


def test_a_loaded_state_restores_the_decision():
    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 12)
    other = SpikeGuard(sigma=6, window=16)

    other.load_state(guard.state())

    values = {"loss": 5.7, "global_norm": 1.0}
    assert other.reason_to_skip(values) == guard.reason_to_skip(values) is not None
