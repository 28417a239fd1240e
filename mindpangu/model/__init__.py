"""The network: `decoder.py` with its `layers.py`, `precision.py`, `vocabularies.py`, `initialization.py`,
`parameter_count.py`, `coupling.py`.

Nothing is imported here, so that what needs no MindSpore (parameter counts, vocabularies) does not load it.
"""
