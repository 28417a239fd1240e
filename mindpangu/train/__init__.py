"""Training: `run.py` sets a run up, `loop.py` takes its steps, `step.py` is one step, `compiled.py` its functions.

The other modules are the optimizer, the schedule, spike skipping, the planned stream, callbacks, checkpointing,
and the report. Nothing is imported here, so that modules that need no MindSpore do not load it.
"""
