"""Evaluation of a checkpoint: on held-out text, and on the questions of published tasks.

`heldout.py` computes the loss of every domain's held-out split, `answers.py` lets the model answer held-out instruction
records, `bits_per_byte.py` makes losses of different tokenizers comparable, `record.py` builds the content
of `evaluation.json` and the printed table.

`task.py` says what a task is, `tasks/` has the tasks, `forms/` what several of them share, and `task_files.py` reads
their files. `choices.py` answers questions, `statistics.py` computes intervals, `task_record.py` builds the results.

Training must not import this package: a caller that evaluates while the model trains passes a callback to `train`.
This file imports nothing, so that reading a record does not load MindSpore.
"""
