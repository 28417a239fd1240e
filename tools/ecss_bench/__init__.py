"""The cases of `tools/bench_ecss.py`: the workload, the measurements, and the models that predict them."""
