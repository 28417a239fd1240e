"""Parameter inheritance: selects the layers and units of a trained dense model that a smaller one keeps.

The steps, in order:

    loss = MaskedLoss(config, decoder, vocabularies, batches)   # a model with masks as inputs: `masked_loss.py`
    windows = measure_windows(loss)                             # which layers matter: `layers.py`
    layers = choose_layers(windows, …)
    importance = taylor(loss, layers)                           # which units matter: `importance.py`, `learned_mask.py`
    kept = Kept(layers, largest(importance, child))             # `mindpangu.model.coupling`

`inheriting.py` runs these steps, `report.py` reports the result, and `mindpangu.lifecycle.prune` makes the checkpoint.
"""
