"""Inheritance of parameters: a smaller dense model out of a trained one, in the order in which things happen:

    loss = MaskedLoss(config, decoder, vocabularies, batches)   # a model with masks as inputs: `masked_loss.py`
    windows = measure_windows(loss)                      # which layers matter: `layers.py`
    layers = choose_layers(windows, …)
    importance = taylor(loss, layers)                    # which units matter: `importance.py`, `learned_mask.py`
    kept = Kept(layers, largest(importance, child))      # `mindpangu.model.coupling`

`inheriting.py` does all of this, `report.py` says what came of it, `mindpangu.lifecycle.prune` makes the checkpoint.
"""
