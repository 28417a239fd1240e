"""A compiled kernel, called with NumPy arrays."""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ascend_ops.native import OperatorError

# NumPy has no bfloat16: these are its bits, and no integers
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

_TYPES = {
    np.dtype(np.float32): b"float32",
    np.dtype(np.float16): b"float16",
    np.dtype(np.int32): b"int32",
    np.dtype(np.uint16): b"uint16",
    BFLOAT16: b"bfloat16",
}
_MOST_OUTPUTS, _MOST_CORES, _GRANULE = 8, 64, 32


class EmulatorError(OperatorError):
    """A rule that a kernel broke, or a kernel that does not compile.

    Attributes:
        rule: its name, as in `machine/rules.h`; "compile" for the compiler's.
    """

    def __init__(self, rule: str, message: str):
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass(frozen=True)
class Report:
    """What the cores did: int64 arrays with an entry for each core, as `Counters` in machine/core.h."""

    bytes_read: np.ndarray
    bytes_written: np.ndarray
    loads: np.ndarray
    stores: np.ndarray
    vector_operations: np.ndarray
    flags: np.ndarray
    elements: np.ndarray
    sync_alls: np.ndarray

    @property
    def bytes_moved(self) -> np.ndarray:
        """To and from global memory."""
        return self.bytes_read + self.bytes_written

    @property
    def scalar_operations(self) -> np.ndarray:
        """Single elements read or written, and instructions handed to other pipes."""
        return self.elements + self.loads + self.stores + self.vector_operations + self.flags


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
    ]


class Operator:
    """`operator(*arrays, attributes=…)` runs type and shape inference, tiling and kernel; see `compile_operator`."""

    def __init__(self, library: Path, kernel: str, chip: str):
        self.kernel, self.chip = kernel, chip
        self._library = ctypes.CDLL(str(library))

    def __call__(self, *inputs: np.ndarray, cores: int = 0) -> tuple[list[np.ndarray], Report]:
        """The outputs, and what they cost.

        Args:
            inputs: arrays of the operator.
            cores: how many tiling may use; 0: all of the chip.

        Raises:
            EmulatorError: a broken rule.
        """
        arrays = [_aligned_copy(array) for array in inputs]
        call = (_tensors(arrays), len(arrays))
        outputs = self._infer(call)
        counters = np.zeros((_MOST_CORES, len(fields(Report))), np.int64)
        problem = ctypes.create_string_buffer(1024)
        ran = self._library.emulator_run(
            self.chip.encode(),
            cores,
            *call,
            _tensors(outputs),
            len(outputs),
            ctypes.c_void_p(counters.ctypes.data),
            problem,
            len(problem),
        )
        _check(ran, problem)
        return outputs, Report(*counters[:ran].T)

    def definition(self) -> dict:
        """What op_host defines for this chip, as CANN's build writes it down (aic-<chip>-ops-info.json)."""
        function = self._library.emulator_definition
        function.restype = ctypes.c_char_p
        return json.loads(function(self.chip.encode()))

    def _infer(self, call) -> list[np.ndarray]:
        shapes = ((ctypes.c_int64 * 8) * _MOST_OUTPUTS)()
        types = (ctypes.c_char_p * _MOST_OUTPUTS)()
        problem = ctypes.create_string_buffer(1024)
        number = self._library.emulator_infer(self.chip.encode(), *call, shapes, types, problem, len(problem))
        _check(number, problem)
        dtypes = {name: dtype for dtype, name in _TYPES.items()}
        return [_aligned(list(shapes[i][1 : 1 + shapes[i][0]]), dtypes[types[i]]) for i in range(number)]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 → BFLOAT16, to nearest, ties to even; no NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(BFLOAT16)


def from_bfloat16(values: np.ndarray) -> np.ndarray:
    """BFLOAT16 → float32, exactly."""
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array as the device would allocate it: at a multiple of 32 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _GRANULE, np.uint8)
    start = -memory.ctypes.data % _GRANULE
    return memory[start : start + size].view(dtype).reshape(shape)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    copy = _aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def _tensors(arrays: Sequence[np.ndarray]):
    return (_Tensor * len(arrays))(
        *[
            _Tensor(_TYPES[array.dtype], array.ndim, (ctypes.c_int64 * array.ndim)(*array.shape), array.ctypes.data)
            for array in arrays
        ]
    )


def _check(result: int, problem) -> None:
    if result < 0:
        rule, _, message = problem.value.decode().partition(": ")
        raise EmulatorError(rule, message)
