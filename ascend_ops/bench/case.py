"""What is measured: an operator at one shape. Every operator's folder lists its own in `bench.py`.

    def cases(quick: bool) -> Iterator[Case]

A folder that has that file is found; nothing else names the operators.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORWARD, BOTH, STEP = "forward", "forward+backward", "step"
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Work:
    """What one run has to do at least."""

    moved_bytes: int = 0  # read and written; 0 where memory traffic is not the point
    flops: int = 0


@dataclass(frozen=True)
class Prepared:
    """A case with its arrays.

    Attributes:
        runs: direction → backend → a function that runs it, waits, and returns the results as arrays or tensors.
            Backend "limit" need not return anything.
        expected: direction → what the reference computes in float64 for each of the first results.
        reset: undoes what runs changed in their inputs; called before each run that is checked.
        repeats: how often a run does its work, for what is too short for one.
        close: frees what is not memory.
    """

    runs: Mapping[str, Mapping[str, Callable[[], Sequence | None]]]
    expected: Callable[[str], Sequence[np.ndarray]]
    reset: Callable[[], None] = lambda: None
    repeats: int = 1
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Case:
    """An operator at one shape; cheap to make: arrays and compiled functions appear in `prepare`.

    Attributes:
        shape: for people, as "T2048 H1024 E16 D1".
        limit: for people: what the limit does.
        work: direction → the least work.
        tolerance: the largest error, relative to the largest value of the reference, that is no mistake.
    """

    op: str
    shape: str
    limit: str
    work: Mapping[str, Work]
    prepare: Callable[[], Prepared]
    dtype: str = "float32"
    tolerance: float = 1e-5


def operators() -> list[str]:
    """Operators that have something to measure."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/bench.py"))


def cases_of(operator: str, quick: bool) -> Iterator[Case]:
    """The cases that an operator's folder lists."""
    return importlib.import_module(f"ascend_ops.{operator}.bench").cases(quick)


def largest_error(found: Sequence, expected: Sequence[np.ndarray]) -> float:
    """The largest difference, relative to the largest expected value of its array; NaN where a value is NaN."""
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
