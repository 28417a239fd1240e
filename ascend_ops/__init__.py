"""The operators behind Random Routed Experts: one folder each, with one Python function.

    rre_dispatch   sorts rows by the expert that the routing table assigns to their token
    rre_combine    returns rows to token order and adds the residual
    grouped_ffn    runs every expert's feed-forward network on its own rows
    rre_regroup    reorders rows from (source rank, expert) to (expert, source rank), and back
    grouped_all_to_all, dispatch_all_to_all      exchange rows between the ranks of a group
    expert_adam    AdamW on the activated experts, in place in host memory

A folder holds `__init__.py` (the function and its contract), `reference.py` (NumPy; every backend is tested against
it), `composed.py` (built-in MindSpore ops, which run anywhere), `cpu.cc` with `cpu.py` (C++ for the host), `ascend`
(AscendC kernels, where they exist) with `emulation.py`, and `bench.py`. `backends.py` chooses a backend,
`native.py` compiles the C++. This package imports nothing of mindpangu.

Suffixes of array names, here and in mindpangu, give the axes: rows_TH is [T, H].

    A  experts of the largest expert group held here
    B  batch: sequences
    C  capacity: rows or tokens that a buffer, block, or cache can hold
    D  domain slots of a step
    E  experts of a group
    F  inner size of a feed-forward network
    G  groups of a step: D·E
    H  hidden size
    I  inputs of a matrix
    J  values that a statistic compares: points of a search, batches
    K  size of an attention head
    L  RRE layers
    M  domains of the model
    N  attention heads
    O  outputs of a matrix
    P  tokens of a padded prompt, parameters of a model
    Q  rows that a rank sends
    R  ranks
    S  sequence length
    T  tokens: B·S
    U  experts that an update changes
    V  vocabulary size
    X  overflow blocks of the composed grouped_ffn
    Y  all its blocks: G + X
    Z  rows of all its blocks: Y·C
"""
