"""Computes what a configuration costs on a cluster, without running it.

`budget.py` counts what a rank stores and sends. Nothing in the package imports this room except the command line.
"""
