"""The recipe of PanGu-π for tiny language models ("Rethinking Optimization and Architecture for Tiny Language Models",
arXiv 2402.02791): a compact tokenizer, a search for the architecture, the inheritance of parameters from a larger
model, and training in several rounds.

A folder for each of these: `tokenizer`, `architecture`, `inheritance`, `rounds`. `batch_size.py` has the rule for the
learning rate, `compute.py` what a training computes, `verified_file.py` files that know when they were altered;
`trials` trains many configurations for the searches.

Nothing is imported here, so that what needs no MindSpore does not load it.
"""
