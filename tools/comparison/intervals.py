"""The mean of a few paired differences and its 95 % interval."""

import math
from collections.abc import Sequence
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
    def of(values: Sequence[float]) -> "Interval":
        """Of 2 to MOST_SEEDS values."""
        values = np.asarray(values, np.float64)
        half_width = _T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
        return Interval(float(values.mean()), float(half_width))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"
