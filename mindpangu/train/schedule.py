"""Learning rate: linear warm-up, then cosine decay to its end value (PanGu-α and PanGu-Σ)."""

import math

from mindpangu.config import LrSchedulerConfig


def learning_rate(schedule: LrSchedulerConfig, step: float) -> float:
    """Returns the learning rate of a step; the first step is 1.

    Warm-up reaches the peak at step `warmup_steps`. The cosine reaches its end value at step `decay_steps`, counted
    from the start of training, after which the rate is constant.
    """
    peak = schedule.learning_rate
    end = schedule.lr_end
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / (schedule.decay_steps - schedule.warmup_steps))
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
