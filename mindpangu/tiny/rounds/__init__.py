"""Training in several rounds.

`sampling.py` draws the batches of a further round, `batch_losses.py` computes the losses that it draws by, `files.py`
defines the files of both, `progress.py` determines how far a run folder has been trained, `adopt.py` takes over the
first round of another run, and `training.py` trains the rounds.
"""
