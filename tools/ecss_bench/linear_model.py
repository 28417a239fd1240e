"""Models step time as a linear function of a step's work, calibrated and checked in the same run.

    seconds = constant + per_expert · experts moved and updated + per_flop · FLOPs

An expert costs the transfer of its bytes and the update of its rows in Adam. Both are proportional to the number of
experts, so step times cannot separate them: their ratio is measured separately, and their sum is fitted to the steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Work:
    """Work of a step: bytes over the link, parameters that Adam updates, floating-point operations."""

    bytes_moved: float
    adam_parameters: float
    flops: float


@dataclass(frozen=True)
class LinearModel:
    """Coefficients: constant seconds, and seconds per byte, per Adam parameter, and per FLOP."""

    constant: float
    per_byte: float
    per_parameter: float
    per_flop: float

    def seconds(self, work: Work) -> float:
        """Returns the predicted seconds of a step."""
        return self.constant + self.moving_seconds(work) + self.per_flop * work.flops

    def moving_seconds(self, work: Work) -> float:
        """Returns the predicted seconds of transfer and update alone."""
        return self.per_byte * work.bytes_moved + self.per_parameter * work.adam_parameters


def calibrate(
    works: Sequence[Work], seconds: Sequence[float], byte_seconds: float, parameter_seconds: float
) -> LinearModel:
    """Fits a model to measured steps by least squares of the relative errors, without negative coefficients.

    Args:
        works, seconds: work and measured time of each step.
        byte_seconds, parameter_seconds: seconds per byte over the link and per parameter in Adam, each measured alone.
            Only their ratio matters.
    """
    moved = np.array([byte_seconds * w.bytes_moved + parameter_seconds * w.adam_parameters for w in works])
    columns = np.stack([np.ones(len(works)), moved, np.array([work.flops for work in works])], 1)
    scale = np.abs(columns).max(0)
    relative = columns / scale / np.array(seconds)[:, None]
    # drop terms whose coefficient would be negative
    kept = [0, 1, 2]
    while True:
        solution, *_ = np.linalg.lstsq(relative[:, kept], np.ones(len(works)), rcond=None)
        if (solution >= 0).all():
            break
        kept.pop(int(np.argmin(solution)))
    constant, factor, per_flop = (dict(zip(kept, solution, strict=True)).get(i, 0.0) / scale[i] for i in range(3))
    return LinearModel(
        float(constant), float(factor * byte_seconds), float(factor * parameter_seconds), float(per_flop)
    )
