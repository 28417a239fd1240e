"""A run: what its caller can add to the training."""

from mindpangu.config import load_config
from mindpangu.train.callbacks import Callback
from mindpangu.train.run import open_run, set_device, train


class Recorder(Callback):
    """Keeps the hooks that training calls, in order."""

    def __init__(self):
        self.calls = []

    def on_start(self, first_step, last_step):
        self.calls.append(("start", first_step, last_step))

    def on_step(self, record):
        self.calls.append(("step", record.step, record.loss))

    def on_end(self):
        self.calls.append(("end",))


def test_a_callers_callback_sees_every_step(tiny_run):
    overrides, _ = tiny_run
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    recorder = Recorder()

    finished = train(run, log=lambda text: None, callbacks=[recorder])

    assert finished == 6
    steps = [("step", step) for step in range(1, 7)]
    assert [call[:2] for call in recorder.calls] == [("start", 1), *steps, ("end",)]
    assert all(0 < loss < 10 for _, _, loss in recorder.calls[1:-1])
