"""Runs with several processes.

`mesh` arranges the ranks in groups, `sharding` and `expert_share` define what each rank holds, `collectives` and
`data_parallel` are the collectives of the groups, `processes` connects the ranks, and `watch` ends all of them when one
fails.
"""
