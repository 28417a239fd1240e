"""Measures the best that a kernel could reach, with the functions of cpu.cc, in the same minute as the kernel itself.

Every limit is a function without arguments that runs on all threads. There are none if cpu.cc does not compile. The
arrays are allocated and written beforehand, so that no page faults are timed.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping

import numpy as np

from ascend_ops import native
from ascend_ops.bench.case import BOTH, FORWARD, Work


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(native.library("bench")))
    except native.CompileError:
        return None


def num_threads() -> int:
    """Returns the number of threads of an OpenMP region; 1 if cpu.cc does not compile."""
    library = _library()
    return library.num_threads() if library else 1


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def copy(moved_bytes: int, repeats: int = 1) -> Callable[[], None] | None:
    """Returns a memcpy that reads and writes as many bytes in total as the operator, half of them each.

    A chain of operators reads what the previous one has written and needs a third array while two are in use. Repeated
    copies also use three arrays, so that they do not occupy a smaller part of the cache.
    """
    library = _library()
    if library is None:
        return None
    size = moved_bytes // 2
    arrays = [np.ones(size, np.uint8) for _ in range(min(1 + repeats, 3))]

    def run() -> None:
        for repeat in range(repeats):
            source = arrays[repeat % len(arrays)]
            destination = arrays[(repeat + 1) % len(arrays)]
            library.copy(_pointer(destination), _pointer(source), ctypes.c_int64(size))

    return run


def stream(size: int) -> Callable[[], None] | None:
    """Returns a function that reads four float32 arrays and writes three: Adam's traffic, hardly any arithmetic."""
    library = _library()
    if library is None:
        return None
    arrays = [np.ones(size, np.float32) for _ in range(4)]
    return lambda: library.stream(*map(_pointer, arrays), ctypes.c_int64(size))


def product(transpose_a: str, transpose_b: str, m: int, n: int, k: int) -> Callable[[], None] | None:
    """Returns a matrix product a · b = [m, n] of inner size k, by the oneDNN of the wheel on all threads."""
    library = _library()
    if library is None:
        return None
    a, b, c = (np.ones(size, np.float32) for size in (m * k, k * n, m * n))

    def run() -> None:
        transposes = (ctypes.c_char(each.encode()) for each in (transpose_a, transpose_b))
        status = library.product(*transposes, *map(ctypes.c_int64, (m, n, k)), _pointer(a), _pointer(b), _pointer(c))
        if status != 0:
            raise RuntimeError(f"oneDNN's sgemm failed with status {status}")

    return run


class DenseChain:
    """One expert's network on all rows, with the same GEMM: the time of grouped_ffn if grouping cost nothing."""

    def __init__(self, num_rows: int, hidden: int, inner: int):
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return np.float32(0.05) * rng.standard_normal(shape, np.float32)

        self.rows = normal(num_rows, hidden)
        self.dout = normal(num_rows, hidden)
        self.weights = [normal(hidden, inner), normal(inner), normal(inner, hidden), normal(hidden)]
        # `activated` needs at least a block of 256 rows per thread
        self._activated = np.ones((max(num_rows, 256 * num_threads()), inner), np.float32)
        self._u = np.ones((num_rows, inner), np.float32)
        self._du = np.ones((num_rows, inner), np.float32)
        self.out = np.ones_like(self.rows)
        self.drows = np.ones_like(self.rows)
        self.gradients = [np.ones_like(weight) for weight in self.weights]
        self._sizes = [ctypes.c_int64(size) for size in (num_rows, hidden, inner)]

    def forward(self) -> None:
        """Writes `out`."""
        self._call("dense_forward", self.rows, *self.weights, self._u, self._activated, self.out)

    def forward_and_backward(self) -> None:
        """Writes `out`, `drows` and `gradients`."""
        self.forward()
        up, _, down, _ = self.weights
        arrays = (self.dout, self._u, self.rows, up, down, self._du, self._activated, self.drows, *self.gradients)
        self._call("dense_backward", *arrays)

    def _call(self, function: str, *arrays: np.ndarray) -> None:
        status = getattr(_library(), function)(*map(_pointer, arrays), *self._sizes)
        if status != 0:
            raise RuntimeError(f"oneDNN's sgemm failed with status {status}")


def dense_chain(num_rows: int, hidden: int, inner: int) -> dict[str, Callable[[], None]]:
    """Returns direction → the chain; {} if cpu.cc does not compile."""
    if _library() is None:
        return {}
    chain = DenseChain(num_rows, hidden, inner)
    return {FORWARD: chain.forward, BOTH: chain.forward_and_backward}


def copies(work: Mapping[str, Work], repeats: int = 1) -> dict[str, Callable[[], None]]:
    """Returns direction → a memcpy of its least bytes, repeated as often as a run repeats its work."""
    functions = {direction: copy(least.moved_bytes, repeats) for direction, least in work.items()}
    return {direction: function for direction, function in functions.items() if function is not None}
