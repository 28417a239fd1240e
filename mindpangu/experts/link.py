"""Link: copies between host memory and the memory that the step computes from, and counts bytes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
"""(target, source) arrays of equal shapes."""


class Link:
    """Copies with host threads. The arrays of a pair may differ in dtype; values are rounded on the way.

    Both methods return the number of bytes that crossed the link, in the narrower dtype of a pair: the device's.
    """

    def __init__(self, threads: int):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="expert-copies")

    def copy(self, pairs: Pairs) -> int:
        """Copies the sources to the targets."""
        return self._move(_copy, pairs)

    def add(self, pairs: Pairs) -> int:
        """Adds the sources to the targets."""
        return self._move(_add, pairs)

    def _move(self, operation: Callable[[tuple[np.ndarray, np.ndarray]], None], pairs: Pairs) -> int:
        for _ in self._threads.map(operation, pairs):
            pass
        return sum(min(target.nbytes, source.nbytes) for target, source in pairs)


# A number beyond the range of float16 becomes infinite without a warning; the loss scale detects it.


def _copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    target, source = pair
    with np.errstate(over="ignore"):
        np.copyto(target, source, casting="same_kind")


def _add(pair: tuple[np.ndarray, np.ndarray]) -> None:
    target, source = pair
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(target, source, out=target)
