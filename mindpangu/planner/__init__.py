"""Computes what a configuration costs on a cluster, without running it.

`budget.py` computes what a rank stores and sends. No other package of mindpangu imports this one.
"""
