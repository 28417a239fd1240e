"""Losses by domain and their paired differences: the mean over a few seeds and its 95 % interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1 … 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

MOST_SEEDS = 1 + len(_T95)


@dataclass(frozen=True)
class Interval:
    """mean ± half_width."""

    mean: float
    half_width: float

    @staticmethod
    def from_values(values: Sequence[float]) -> "Interval":
        """Of 2 to MOST_SEEDS values."""
        values = np.asarray(values, np.float64)
        half_width = _T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
        return Interval(float(values.mean()), float(half_width))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def with_mean(losses: Mapping[str, float]) -> dict[str, float]:
    """domain → loss, and "mean" → that of the domains."""
    return {**losses, "mean": float(np.mean(list(losses.values())))}


def paired_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]
) -> dict[str, Interval]:
    """domain, or "mean" → loss of the first − loss of the second over seeds (paired t); none of a single seed.

    Args:
        first, second: domain → loss, of each seed.
    """
    if len(first) < 2:
        return {}
    pairs = [(with_mean(one), with_mean(other)) for one, other in zip(first, second, strict=True)]
    return {
        domain: Interval.from_values([one[domain] - other[domain] for one, other in pairs]) for domain in pairs[0][0]
    }
