"""The life of a model after its training: other domains, other experts, another vocabulary, other formats.

Everything here turns checkpoints into new checkpoints, file by file, without a model in memory; the source is never
changed. `blueprint.py` says what a new checkpoint is to consist of and `build.py` writes it, where `output.py` lets it;
the other files make blueprints: `add.py` and `domains.py` (add, copy, replace, remove), `resize.py`, `extract.py`,
`vocabulary.py`, `upcycle.py`, `prune.py`. `export.py` writes a sub-model for other programs, `pangu_alpha` converts
published checkpoints.

Fine-tuning is the exception, as it trains (`train`): `finetune.py` has its settings, `heldout_answers.py` says what it
changed.

No MindSpore is loaded here, but by the conversion of its own checkpoint format and by `heldout_answers.py`.
"""
