"""The operators that Random Routed Experts stand on: one folder each, with one Python function.

    rre_dispatch   rows sorted by the expert that the routing table names for their token
    rre_combine    rows back in token order, residual added
    grouped_ffn    every expert's feed-forward network on its own rows

A folder holds `reference.py` (NumPy, the truth that every backend is tested against) and `composed.py` (built-in
MindSpore ops: runs anywhere, in graph and PyNative mode). Shape suffixes: T tokens, H hidden, F FFN, V vocabulary,
D domain slots, E experts of a slot, G = D·E groups, C rows of a block, X overflow blocks. Imports nothing of mindpangu.
"""
