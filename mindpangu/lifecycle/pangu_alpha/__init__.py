"""PanGu-α's published checkpoints ↔ checkpoints of mindpangu.

    mindspore_file.py   a MindSpore .ckpt file, one tensor at a time
    strategy.py         how the ranks of a training shared its tensors: MindSpore's strategy file
    source.py           all tensors of a release: one file, or many with a strategy, and embeddings as .npy
    weights.py          names and layouts, there and here
    checks.py           whether tensors and configuration are of one model
    convert.py          both ways

Published are dense models with a query layer; sparse ones are not, so none are read or written.
"""

from mindpangu.lifecycle.pangu_alpha.convert import from_pangu_alpha, to_pangu_alpha

__all__ = ["from_pangu_alpha", "to_pangu_alpha"]
