"""The microbenchmark of the operators: `python -m ascend_ops.bench --help`."""
