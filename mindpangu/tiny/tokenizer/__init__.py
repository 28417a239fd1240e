"""The compact tokenizer, in the order in which things happen:

    documents = FileDocuments(["corpus/*.jsonl"])                    # or RunDocuments(config): `documents.py`
    split = Split.draw(documents, heldout_fraction, seed)              # which of them are held out
    counts = count_pieces(documents, split, tokenizer)               # once for all sizes: `piece_counts.py`
    choices = Choices(tokenizer)                                     # which pieces stay: `choices.py`
    kept = choices.of_size(4000, counts.train_V)
    coverage(kept, counts.train_V)                                   # the prediction
    measure(documents, split, [choices.tokenizer(kept)])             # on held-out text: `usage.py`

`size_curve.py` puts sizes side by side; `compaction.py` does all of this and writes a folder.
"""
