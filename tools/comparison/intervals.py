"""Paired differences of losses by domain: the mean over a few seeds and its 95 % interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1 … 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

MAX_SEEDS = 1 + len(_T95)


@dataclass(frozen=True)
class Interval:
    """A confidence interval, mean ± half_width."""

    mean: float
    half_width: float

    @staticmethod
    def from_values(values: Sequence[float]) -> "Interval":
        """Computes the 95 % interval of the mean of 2 to MAX_SEEDS values, with Student's t."""
        values_J = np.asarray(values, np.float64)
        half_width = _T95[len(values_J) - 2] * values_J.std(ddof=1) / math.sqrt(len(values_J))
        return Interval(float(values_J.mean()), float(half_width))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def with_mean(losses: Mapping[str, float]) -> dict[str, float]:
    """Returns domain → loss, with the mean of the domains added as "mean"."""
    return {**losses, "mean": float(np.mean(list(losses.values())))}


def paired_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]
) -> dict[str, Interval]:
    """Returns the interval of (first loss − second loss), paired by seed, for each domain and "mean".

    Returns nothing for a single seed.

    Args:
        first, second: domain → loss, for each seed.
    """
    if len(first) < 2:
        return {}
    pairs = [(with_mean(one), with_mean(other)) for one, other in zip(first, second, strict=True)]
    return {
        domain: Interval.from_values([one[domain] - other[domain] for one, other in pairs]) for domain in pairs[0][0]
    }
