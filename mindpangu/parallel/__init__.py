"""Many processes.

`mesh` says which ranks share what, `collectives` and `data_parallel` are their collectives, `processes` connects the
ranks, and `watch` ends all of them when one fails.
"""
