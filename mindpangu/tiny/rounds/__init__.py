"""Several rounds of training: `sampling.py` draws the batches of a further round, `batch_losses.py` computes the losses
that this takes, `files.py` keeps both on disk, `progress.py` says how far a run folder has got, `adopt.py` takes a
first round from another one, and `training.py` goes through the rounds.
"""
