"""Learning rate: linear warm-up, then cosine decay to its end value (PanGu-α and PanGu-Σ)."""

import math

from mindpangu.config import LrSchedulerConfig


def learning_rate(schedule: LrSchedulerConfig, step: float) -> float:
    """Learning rate of optimizer step `step` (the first is 1). `decay_steps` counts from the start of training.

    Warm-up reaches the peak at step `warmup_steps`; the cosine ends at step `decay_steps` and stays there.
    """
    peak, end = schedule.learning_rate, schedule.lr_end
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / (schedule.decay_steps - schedule.warmup_steps))
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
