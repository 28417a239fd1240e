"""The recipe of PanGu-π for tiny language models ("Rethinking Optimization and Architecture for Tiny Language Models",
arXiv 2402.02791): a compact tokenizer, a search for the architecture, the inheritance of parameters from a larger
model, and training in several rounds.

The compact tokenizer, in the order in which things happen:

    documents = FileDocuments(["corpus/*.jsonl"])                    # or RunDocuments(config): `documents.py`
    split = Split.of(documents, heldout_fraction, seed)              # which of them are held out
    counts = count_pieces(documents, split, tokenizer)               # once for all sizes: `piece_counts.py`
    choices = Choices(tokenizer)                                     # which pieces stay: `compact_tokenizer.py`
    kept = choices.of_size(4000, counts.train_V)
    coverage(kept, counts.train_V)                                   # the prediction
    measure(documents, split, [choices.tokenizer(kept)])             # on held-out text: `usage.py`

`size_curve.py` puts sizes side by side; `compaction.py` does all of this and writes a folder.

Several rounds of training: `rounds.py` draws the batches of a further round, `batch_losses.py` computes the losses that
this takes, `round_files.py` keeps both on disk, `standing.py` says how far a run folder has got, `adopt.py` takes a
first round from another one, and `round_training.py` goes through the rounds.

Nothing is imported here, so that what needs no MindSpore does not load it.
"""
