"""Comparisons of trainings over several seeds: the runs, and the intervals of what they differ by."""
