"""Ranks, and Spearman's rank correlation with an interval. Plain NumPy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
FEWEST_POINTS = 5


def mean_ranks(values_N: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Ranks from 1 on along the last axis, lowest first; equal values share the mean of their ranks:

    rank_i = #{j: x_j < x_i} + (#{j: x_j = x_i} + 1) / 2
    """
    x_N = np.asarray(values_N, np.float64)
    less_N = (x_N[..., None, :] < x_N[..., :, None]).sum(axis=-1)
    equal_N = (x_N[..., None, :] == x_N[..., :, None]).sum(axis=-1)
    return less_N + (equal_N + 1) / 2


def spearman(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Spearman's ρ along the last axis: Pearson's correlation of the ranks a and b,

    ρ = Σ (a_i − ā)(b_i − b̄) / √(Σ (a_i − ā)² · Σ (b_i − b̄)²),

    which is 1 − 6 Σ (a_i − b_i)² / (n (n² − 1)) where no values are equal. NaN where all values of a side are.
    """
    a_N, b_N = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (mean_ranks(x_N), mean_ranks(y_N)))
    scale = np.sqrt((a_N**2).sum(axis=-1) * (b_N**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return (a_N * b_N).sum(axis=-1) / scale


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ and its 95 % interval, lowest to highest; NaN where it is not defined."""

    rho: float
    lowest: float
    highest: float

    @staticmethod
    def between(x_N: npt.ArrayLike, y_N: npt.ArrayLike, seed: int = 0) -> "Correlation":
        """With the percentile bootstrap (Efron 1979): the points are drawn anew, with replacement, 2000 times, and the
        interval leaves 2.5 % of the ρ of these at either end. A draw in which a side has one value is left out.

        With a dozen points this is rough, and rather too narrow than too wide; with fewer than five there is none.
        """
        x_N, y_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
        rho = float(spearman(x_N, y_N))
        draws_RN = np.random.default_rng(seed).integers(0, len(x_N), (RESAMPLES, len(x_N)))
        # in parts: the comparisons of a draw are N²
        resampled = np.concatenate([spearman(x_N[part], y_N[part]) for part in np.array_split(draws_RN, 20)])
        defined = resampled[np.isfinite(resampled)]
        if np.isnan(rho) or len(x_N) < FEWEST_POINTS:
            return Correlation(rho, float("nan"), float("nan"))
        lowest, highest = np.percentile(defined, (2.5, 97.5))
        return Correlation(rho, float(lowest), float(highest))

    def to_dict(self) -> dict[str, float | None]:
        """For a report; JSON knows no NaN."""
        return {name: None if np.isnan(value) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        if np.isnan(self.rho):
            return "not defined"
        if np.isnan(self.lowest):
            return f"{self.rho:+.2f} (few points)"
        return f"{self.rho:+.2f} ({self.lowest:+.2f} … {self.highest:+.2f})"
