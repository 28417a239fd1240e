"""A compiled kernel, called with NumPy arrays."""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ascend_ops.native import OperatorError

# NumPy has no bfloat16: a structured type keeps its bits apart from integers
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

_TYPES: dict[np.dtype, bytes] = {
    np.dtype(np.float32): b"float32",
    np.dtype(np.float16): b"float16",
    np.dtype(np.int32): b"int32",
    np.dtype(np.uint16): b"uint16",
    BFLOAT16: b"bfloat16",
}
_MAX_OUTPUTS = 8
_MAX_CORES = 64
_GRANULE = 32  # bytes


class EmulatorError(OperatorError):
    """A kernel broke a rule, or does not compile.

    Attributes:
        rule: name of the rule, as in `machine/rules.h`; "compile" if the kernel does not compile.
    """

    def __init__(self, rule: str, message: str):
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass(frozen=True)
class Report:
    """Counts of the cores' work: int64 arrays with one entry per core, like `Counters` in machine/core.h."""

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
        """Bytes to and from global memory."""
        return self.bytes_read + self.bytes_written

    @property
    def scalar_operations(self) -> np.ndarray:
        """Single elements read or written, and instructions issued to other pipes."""
        return self.elements + self.loads + self.stores + self.vector_operations + self.flags


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
    ]


class Operator:
    """A compiled operator. A call runs type and shape inference, tiling and the kernel; see `compile_operator`."""

    def __init__(self, library: Path, kernel: str, chip: str):
        self.kernel = kernel
        self.chip = chip
        self._library = ctypes.CDLL(str(library))

    def __call__(self, *inputs: np.ndarray, cores: int = 0) -> tuple[list[np.ndarray], Report]:
        """Returns the outputs and their costs.

        Args:
            inputs: input arrays of the operator.
            cores: number of cores that the tiling may use; 0 for all of the chip.

        Raises:
            EmulatorError: a rule was broken.
        """
        arrays = [_aligned_copy(array) for array in inputs]
        call = (_tensors(arrays), len(arrays))
        outputs = self._infer(call)
        counters = np.zeros((_MAX_CORES, len(fields(Report))), np.int64)
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
        """Returns op_host's definition for this chip, as CANN's build writes it to aic-<chip>-ops-info.json."""
        function = self._library.emulator_definition
        function.restype = ctypes.c_char_p
        return json.loads(function(self.chip.encode()))

    def _infer(self, call: tuple[ctypes.Array, int]) -> list[np.ndarray]:
        shapes = ((ctypes.c_int64 * 8) * _MAX_OUTPUTS)()
        types = (ctypes.c_char_p * _MAX_OUTPUTS)()
        problem = ctypes.create_string_buffer(1024)
        num_outputs = self._library.emulator_infer(self.chip.encode(), *call, shapes, types, problem, len(problem))
        _check(num_outputs, problem)
        dtypes: dict[bytes | None, np.dtype] = {name: dtype for dtype, name in _TYPES.items()}
        return [_aligned(list(shapes[i][1 : 1 + shapes[i][0]]), dtypes[types[i]]) for i in range(num_outputs)]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Converts float32 to BFLOAT16, to nearest, ties to even. Does not support NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(BFLOAT16)


def from_bfloat16(values: np.ndarray) -> np.ndarray:
    """Converts BFLOAT16 to float32, exactly."""
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Allocates an array as the device does: at a multiple of 32 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _GRANULE, np.uint8)
    start = -memory.ctypes.data % _GRANULE
    return memory[start : start + size].view(dtype).reshape(shape)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    copy = _aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def _tensors(arrays: Sequence[np.ndarray]) -> ctypes.Array:
    return (_Tensor * len(arrays))(
        *[
            _Tensor(_TYPES[array.dtype], array.ndim, (ctypes.c_int64 * array.ndim)(*array.shape), array.ctypes.data)
            for array in arrays
        ]
    )


def _check(result: int, problem: ctypes.Array) -> None:
    if result < 0:
        rule, _, message = problem.value.decode().partition(": ")
        raise EmulatorError(rule, message)
