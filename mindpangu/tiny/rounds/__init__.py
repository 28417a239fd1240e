"""Training in several rounds.

`sampling.py` draws the batches of a further round, `batch_losses.py` computes the losses that weight the draw,
`files.py` defines the files of both, `progress.py` determines how far a run folder has been trained, `adopt.py` adopts
the first round of another run, and `training.py` trains the rounds.
"""
