"""Evaluation of a checkpoint on held-out text.

`heldout.py` computes the loss of every domain's held-out split, `answers.py` lets the model answer held-out instruction
records, `bits_per_byte.py` makes losses of different tokenizers comparable, `record.py` builds what `evaluation.json`
holds and the table that is printed.

Training must not import this package: the command line passes it what it needs. Nothing is imported here, so that
reading a record does not load MindSpore.
"""
