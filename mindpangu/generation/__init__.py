"""Continuing prompts.

`generator.py` takes requests and gives texts, batch by batch. It stands on `steps.py` (the compiled functions and what
they take from the host), `sampling.py` (from scores to a token) and `text.py` (from tokens to text that may be shown).
"""
