"""The learning rate: warm-up, cosine decay, and the rate at the end."""

import pytest

from mindpangu.config import LrSchedulerConfig
from mindpangu.train.schedule import learning_rate


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
