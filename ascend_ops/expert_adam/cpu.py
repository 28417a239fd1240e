"""expert_adam by the kernel in cpu.cc, called through ctypes, which releases the interpreter lock."""

from ctypes import CDLL, c_int, c_int64, c_void_p

import numpy as np

from ascend_ops import native
from ascend_ops.expert_adam.coefficients import Coefficients

_kernel = CDLL(str(native.library("expert_adam"))).expert_adam
_kernel.argtypes = (*[c_void_p] * 4, c_int, c_int64, c_void_p, c_int64, *[c_void_p] * 3)
_kernel.restype = None


def expert_adam(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    experts_U: np.ndarray,
    coefficients: Coefficients,
) -> None:
    """See `ascend_ops.expert_adam`; takes its checked arguments and their Coefficients."""
    _kernel(
        *(array.ctypes.data for array in (weight, moment1, moment2, gradient)),
        gradient.dtype == np.float16,
        weight[0].size,
        experts_U.ctypes.data,
        len(experts_U),
        *(array.ctypes.data for array in coefficients),
    )
