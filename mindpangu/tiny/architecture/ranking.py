"""Ranks, and Spearman's rank correlation with a bootstrap interval. Uses only NumPy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
MIN_POINTS = 5


def mean_ranks(values_J: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Ranks values along the last axis from 1, the lowest first; equal values share their mean rank.

    rank_i = #{j: x_j < x_i} + (#{j: x_j = x_i} + 1) / 2
    """
    x_J = np.asarray(values_J, np.float64)
    less_J = (x_J[..., None, :] < x_J[..., :, None]).sum(axis=-1)
    equal_J = (x_J[..., None, :] == x_J[..., :, None]).sum(axis=-1)
    return less_J + (equal_J + 1) / 2


def spearman(x_J: npt.ArrayLike, y_J: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Computes Spearman's ρ along the last axis: Pearson's correlation of the ranks a and b.

    ρ = Σ (a_i − ā)(b_i − b̄) / √(Σ (a_i − ā)² · Σ (b_i − b̄)²)

    This equals 1 − 6 Σ (a_i − b_i)² / (n (n² − 1)) without ties. NaN if all values of x or all values of y are equal.
    """
    a_J = _centred(mean_ranks(x_J))
    b_J = _centred(mean_ranks(y_J))
    scale = np.sqrt((a_J**2).sum(axis=-1) * (b_J**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return (a_J * b_J).sum(axis=-1) / scale


def _centred(values_J: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values_J - values_J.mean(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ and its 95 % interval from lowest to highest; NaN if undefined."""

    rho: float
    lowest: float
    highest: float

    @staticmethod
    def between(x_J: npt.ArrayLike, y_J: npt.ArrayLike, seed: int = 0) -> "Correlation":
        """Computes ρ and its percentile bootstrap interval (Efron 1979).

        Resamples the points 2000 times with replacement; the interval leaves out 2.5 % of the resampled ρ at either
        end. Resamples without a defined ρ are ignored. With a dozen points the interval is rough and too narrow; with
        fewer than five there is none.
        """
        x_J = np.asarray(x_J, np.float64)
        y_J = np.asarray(y_J, np.float64)
        rho = float(spearman(x_J, y_J))
        draws = np.random.default_rng(seed).integers(0, len(x_J), (RESAMPLES, len(x_J)))
        # in chunks, because ranking takes N² comparisons per draw
        resampled = np.concatenate([spearman(x_J[chunk], y_J[chunk]) for chunk in np.array_split(draws, 20)])
        defined = resampled[np.isfinite(resampled)]
        if np.isnan(rho) or len(x_J) < MIN_POINTS:
            return Correlation(rho, float("nan"), float("nan"))
        lowest, highest = np.percentile(defined, (2.5, 97.5))
        return Correlation(rho, float(lowest), float(highest))

    def to_dict(self) -> dict[str, float | None]:
        """Returns the entry of the JSON report, with None for NaN, which JSON lacks."""
        return {name: None if np.isnan(value) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        if np.isnan(self.rho):
            return "not defined"
        if np.isnan(self.lowest):
            return f"{self.rho:+.2f} (few points)"
        return f"{self.rho:+.2f} ({self.lowest:+.2f} … {self.highest:+.2f})"
