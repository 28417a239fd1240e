"""The cases of `tools/bench_ecss.py`: what is trained (`workload`), what is measured (`cases`), what is predicted."""
