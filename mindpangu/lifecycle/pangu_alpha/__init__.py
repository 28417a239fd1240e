"""Conversion between PanGu-α's published checkpoints and checkpoints of mindpangu.

    mindspore_file.py   reads and writes MindSpore .ckpt files, one tensor at a time
    strategy.py         reads MindSpore's strategy file, which describes how the tensors were divided among ranks
    source.py           reads all tensors of a release: one file, or many with a strategy, and embeddings as .npy
    weights.py          maps names and layouts
    checks.py           checks that tensors, tokenizer and configuration belong to one model
    convert.py          converts in both directions

Only dense models with a query layer were published, so sparse models can be neither read nor written.
"""

from mindpangu.lifecycle.pangu_alpha.convert import from_pangu_alpha, to_pangu_alpha

__all__ = ["from_pangu_alpha", "to_pangu_alpha"]
