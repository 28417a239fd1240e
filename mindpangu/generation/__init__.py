"""Text generation.

`generator.py` turns requests into texts, batch by batch. It uses `steps.py` (compiled functions and their inputs),
`sampling.py` (from logits to a token) and `text.py` (from tokens to text that can be shown).
"""
