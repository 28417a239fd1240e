"""Step time as a linear function of what a step does, calibrated and checked in the same run.

    seconds = constant + per_expert · experts moved and updated + per_flop · FLOPs

An expert's cost is that of its bytes over the link and of its rows in Adam. Both grow with the number of experts alone,
so steps cannot tell them apart: their proportion is measured alone (`bytes_s`, `rows_s`), their sum by the steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Work:
    """What a step does: bytes over the link, parameters that Adam updates, floating-point operations."""

    bytes_moved: float
    adam_parameters: float
    flops: float


@dataclass(frozen=True)
class LinearModel:
    """Attributes: constant (seconds), seconds per byte, per Adam parameter, per FLOP."""

    constant: float
    per_byte: float
    per_parameter: float
    per_flop: float

    def seconds(self, work: Work) -> float:
        return self.constant + self.moving_seconds(work) + self.per_flop * work.flops

    def moving_seconds(self, work: Work) -> float:
        """Of transfer and update alone."""
        return self.per_byte * work.bytes_moved + self.per_parameter * work.adam_parameters


def calibrate(
    works: Sequence[Work], seconds: Sequence[float], byte_seconds: float, parameter_seconds: float
) -> LinearModel:
    """Least squares of the relative errors over some measured steps.

    Args:
        byte_seconds, parameter_seconds: of one byte over the link and of one parameter in Adam, each measured alone;
            only their proportion counts.
    """
    moved = np.array([byte_seconds * w.bytes_moved + parameter_seconds * w.adam_parameters for w in works])
    columns = np.stack([np.ones(len(works)), moved, np.array([work.flops for work in works])], 1)
    scale = np.abs(columns).max(0)
    relative = columns / scale / np.array(seconds)[:, None]
    # no term may be negative: leave out those that would be
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
