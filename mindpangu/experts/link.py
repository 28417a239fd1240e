"""Link: the copies between host memory and the memory that the step computes from, and how many bytes they moved."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


class Link:
    """Copies by the host's processors, in threads. Arrays may differ in dtype: numbers are rounded on the way.

    Both functions take (target, source) pairs of equal shapes and return the bytes that crossed, counted in the
    narrower dtype of a pair: that of the device.
    """

    def __init__(self, threads: int):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="expert-copies")

    def copy(self, pairs: Pairs) -> int:
        return self._move(_copy, pairs)

    def add(self, pairs: Pairs) -> int:
        """Adds the sources to the targets."""
        return self._move(_add, pairs)

    def _move(self, operation: Callable[[tuple[np.ndarray, np.ndarray]], None], pairs: Pairs) -> int:
        for _ in self._threads.map(operation, pairs):
            pass
        return sum(min(target.nbytes, source.nbytes) for target, source in pairs)


# A number beyond float16 becomes infinite: no warning, it is what the loss scale looks for.


def _copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    target, source = pair
    with np.errstate(over="ignore"):
        np.copyto(target, source, casting="same_kind")


def _add(pair: tuple[np.ndarray, np.ndarray]) -> None:
    target, source = pair
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(target, source, out=target)
