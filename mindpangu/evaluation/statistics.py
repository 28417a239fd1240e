"""Scores with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_SEED = 20210426
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval.

    Attributes:
        value: the mean, or the mean over subjects of their means.
        low, high: bounds of the bootstrap interval (percentiles of the means of resampled questions).
    """

    value: float
    low: float
    high: float


def mean_with_interval(values: Sequence[float], subjects: Sequence[str]) -> Score:
    """Returns the mean over subjects of the mean of their questions' values, e.g. 1 for each right answer.

    All questions are resampled together, so that subjects with a single question vary too; a subject that a resample
    does not contain is left out of its mean.

    Args:
        values: at least one.
        subjects: the subject of each value.
    """
    values_Q = np.array(values, float)
    names, subject_Q = np.unique(np.array(subjects), return_inverse=True)

    def mean(chosen: np.ndarray) -> float:
        counts = np.bincount(subject_Q[chosen], minlength=len(names))
        sums = np.bincount(subject_Q[chosen], values_Q[chosen], minlength=len(names))
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    rng = np.random.default_rng(_SEED)
    count = len(values_Q)
    means = [mean(rng.integers(0, count, count)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Score(mean(np.arange(count)), float(low), float(high))
