"""expert_adam by the kernel of cpu.cc, called through ctypes, which lets go of the interpreter meanwhile."""

from ctypes import CDLL, c_int, c_int64, c_void_p

import numpy as np

from ascend_ops import native

_kernel = CDLL(str(native.library("expert_adam"))).expert_adam
_kernel.argtypes = (*[c_void_p] * 4, c_int, c_int64, c_void_p, c_int64, *[c_void_p] * 3)
_kernel.restype = None


def expert_adam(weight, moment1, moment2, gradient, experts_U, coefficients):
    """See `ascend_ops.expert_adam`; takes its checked arguments and their Coefficients."""
    _kernel(
        *(array.ctypes.data for array in (weight, moment1, moment2, gradient)),
        gradient.dtype == np.float16,
        weight[0].size,
        experts_U.ctypes.data,
        len(experts_U),
        *(array.ctypes.data for array in coefficients),
    )
