"""The cases of `tools/bench_step.py`: the models, their counterparts in torch, and the limit of the matrix products."""
