"""Training: `run.py` sets up a run, `loop.py` takes its steps, and `step.py` is one step.

The other modules are the compiled functions, the optimizer, the learning rate, the loss scale, spike skipping, the
stream of planned steps, callbacks, checkpointing, and the report. Nothing is imported here, so modules that need no
MindSpore do not load it.
"""
