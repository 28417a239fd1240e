"""The network: `decoder.py` with its `layers.py`, `precision.py`, `embedding_slots.py`, `initialization.py`,
`parameter_count.py`, `coupling.py`.

Nothing is imported here, so that what needs no MindSpore (parameter counts, slots) does not load it.
"""
