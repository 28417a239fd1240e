"""Training: `run.py` sets a run up, `loop.py` takes its steps, `step.py` is one step, `compiled.py` its functions.

Beside them the optimizer, the schedule, spike skipping, the planned stream, callbacks, saving and the
report. Nothing is imported here, so that what needs no MindSpore does not load it.
"""
