"""The recipe of PanGu-π for tiny language models ("Rethinking Optimization and Architecture for Tiny Language Models",
arXiv 2402.02791): a compact tokenizer, an architecture search, parameter inheritance from a larger model, and training
in several rounds.

Each has its own folder: `tokenizer`, `architecture`, `inheritance`, `rounds`. `batch_size.py` has the rule that scales
the learning rate, `compute.py` counts training FLOPs, and `verified_file.py` defines files that detect alterations.
`trials` trains the many configurations of a search.

This module imports nothing, so that code without MindSpore does not load it.
"""
