"""A model's life after training: adding and removing domains, resizing, changing the vocabulary, converting formats.

Everything here turns a checkpoint into a new checkpoint, file by file, without loading the model into memory. The
source is never changed. A `Blueprint` (`blueprint.py`) describes a new checkpoint, `build.py` writes it, `output.py`
protects existing results. The other files make blueprints: `add.py` and `domains.py` (add, copy, replace, remove),
`resize.py`, `extract.py`, `vocabulary.py`, `upcycle.py`, `prune.py`. `export.py` writes a sub-model for other programs;
`pangu_alpha` converts published checkpoints.

Fine-tuning is the exception because it trains: `finetune.py` chooses its settings, `train` runs it, and
`evaluation.answers` measures its effect.

Only the conversion of MindSpore's own checkpoint format loads MindSpore.
"""
