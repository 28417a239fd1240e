"""Records of training steps, for the tests of what is made of them."""

from mindpangu.train.callbacks import StepRecord


def step_record(step, **changes):
    """Returns the record of a step with usual values, except for `changes`."""
    values = {
        "step": step,
        "loss": 6.0 + step / 64,
        "lr": 1e-3,
        "global_norm": 1.5,
        "overflow": False,
        "loss_scale": 1.0,
        "per_step_time": 0.1,
        "tokens_per_s": 640.0,
        "imbalance": 1.25,
        "experts_activated": 6,
        "bytes_to_device": 0,
        "bytes_to_host": 0,
        "lookup_s": 0.0,
        "update_s": 0.0,
        "wait_s": 0.0,
        "peak_memory": 0.5,
        "domains": {"zh": 6.0},
        "skipped": None,
    }
    return StepRecord(**values | changes)
