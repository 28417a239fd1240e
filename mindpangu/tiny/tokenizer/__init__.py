"""Compact tokenizers, which keep the most frequent pieces of a larger one.

The steps, in order:

    documents = FileDocuments(["corpus/*.jsonl"])                    # or RunDocuments(config): `documents.py`
    split = Split.draw(documents, heldout_fraction, seed)            # selects the held-out documents
    counts = count_pieces(documents, split, tokenizer)               # once for all sizes: `piece_counts.py`
    selector = PieceSelector(tokenizer)                              # selects the kept pieces: `piece_selection.py`
    kept = selector.select(4000, counts.train_V)
    coverage(kept, counts.train_V)                                   # the prediction
    measure_usage(documents, split, [selector.tokenizer(kept)])      # on held-out text: `usage.py`

`size_curve.py` compares sizes; `compaction.py` runs all steps and writes the output folder.
"""
