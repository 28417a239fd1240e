"""A case of the benchmark: an operator at one shape. Every operator's folder lists its cases in `bench.py`.

    def cases(quick: bool) -> Iterator[Case]

A folder with this file is found automatically; there is no other list of operators.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORWARD = "forward"
BOTH = "forward+backward"
STEP = "step"
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Work:
    """The least work that one run must do."""

    moved_bytes: int = 0  # read and written; 0 if memory traffic does not matter
    flops: int = 0


@dataclass(frozen=True)
class Prepared:
    """A case with its arrays.

    Attributes:
        runs: direction → backend → a function that runs it, waits, and returns the results as arrays or tensors.
            Backend "limit" need not return anything.
        expected: direction → the reference's results in float64, for the first results of a run.
        reset: restores inputs that runs change; called before each run that is checked.
        repeats: how often one run repeats its work, if the work is too short to be timed once.
        close: releases everything but memory.
    """

    runs: Mapping[str, Mapping[str, Callable[[], Sequence | None]]]
    expected: Callable[[str], Sequence[np.ndarray]]
    reset: Callable[[], None] = lambda: None
    repeats: int = 1
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Case:
    """An operator at one shape. A case is cheap: only `prepare` makes arrays and compiled functions.

    Attributes:
        op: name of the operator.
        shape: label, e.g. "T2048 H1024 E16 D1".
        limit: description of the limit.
        work: direction → least work.
        prepare: makes the arrays and functions.
        dtype: dtype of the rows.
        tolerance: largest acceptable error, relative to the largest value of the reference.
    """

    op: str
    shape: str
    limit: str
    work: Mapping[str, Work]
    prepare: Callable[[], Prepared]
    dtype: str = "float32"
    tolerance: float = 1e-5


def operators() -> list[str]:
    """Returns the names of the operators that have a benchmark."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/bench.py"))


def cases_of(operator: str, quick: bool) -> Iterator[Case]:
    """Returns the cases that an operator's folder lists."""
    return importlib.import_module(f"ascend_ops.{operator}.bench").cases(quick)


def largest_error(found: Sequence, expected: Sequence[np.ndarray]) -> float:
    """Returns the largest difference relative to the largest expected value of its array; NaN if a value is NaN."""
    worst = 0.0
    for tensor, wanted in zip(found, expected, strict=False):
        array = tensor.asnumpy() if hasattr(tensor, "asnumpy") else np.asarray(tensor)
        if array.shape != wanted.shape:
            return float("inf")
        error = float(np.abs(array - wanted).max(initial=0)) / max(float(np.abs(wanted).max(initial=0)), 1e-30)
        worst = error if np.isnan(error) else max(worst, error)
        if np.isnan(worst):
            break
    return worst
