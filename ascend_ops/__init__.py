"""The operators that Random Routed Experts stand on: one folder each, with one Python function.

    rre_dispatch   rows sorted by the expert that the routing table names for their token
    rre_combine    rows back in token order, residual added
    grouped_ffn    every expert's feed-forward network on its own rows
    rre_regroup    rows from (source rank, expert) order into (expert, source rank) order, and back
    grouped_all_to_all, dispatch_all_to_all      rows exchanged between the ranks of a group
    expert_adam    AdamW on the activated experts, in place in host memory

A folder holds `__init__.py` (the function and its meaning), `reference.py` (NumPy, the truth that every backend is
tested against), `composed.py` (built-in MindSpore ops: runs anywhere), `cpu.cc` with `cpu.py` (C++ for the host) and
`bench.py`. `backends.py` chooses, `native.py` compiles. Shape suffixes: T tokens, H hidden, F FFN, V vocabulary, D
domain slots, E experts of a slot, G = D·E groups, R ranks, S rows to send, C rows of a buffer or block, X overflow
blocks, A activated experts. Imports nothing of mindpangu.
"""
