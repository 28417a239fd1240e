"""The network: `decoder.py`, and its blocks, layers, routed experts, token dispatchers, embedding and head.

Nothing is imported here, so that modules without MindSpore (`parameter_count`, `vocabularies`, `initialization`,
`coupling`) do not load it.
"""
