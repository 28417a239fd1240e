"""Continuing a prompt: `sampling.py` picks a token from scores, `generate.py` is the loop around the model."""
