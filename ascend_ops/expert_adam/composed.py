"""expert_adam in NumPy, block by block, on several threads, since NumPy releases the interpreter lock."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ascend_ops.expert_adam.coefficients import Coefficients

BLOCK = 1 << 15  # elements computed at a time: w, m, v, g and scratch stay in the L2 cache
PIECE = 1 << 19  # elements that a thread takes at a time


def expert_adam(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    experts_U: np.ndarray,
    coefficients: Coefficients,
) -> None:
    """See `ascend_ops.expert_adam`; takes its checked arguments and their Coefficients."""
    size = weight[0].size
    flat = [array.reshape(len(array), size) for array in (weight, moment1, moment2, gradient)]

    def update(position: int, start: int) -> None:
        w, m, v, g = (array[experts_U[position], start : start + PIECE] for array in flat)
        _update(w, m, v, g, coefficients.step_size_U[position], coefficients.eps_U[position], coefficients.constants)

    pieces = [(position, start) for position in range(len(experts_U)) for start in range(0, size, PIECE)]
    if len(experts_U) * size <= BLOCK:  # starting threads takes longer
        for piece in pieces:
            update(*piece)
        return
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda piece: update(*piece), pieces):
            pass


def _update(
    weight: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    gradient: np.ndarray,
    step_size: np.float32,
    eps: np.float32,
    constants: np.ndarray,
) -> None:
    """Updates flat arrays in place, with the operations of cpu.cc in the same order."""
    keep, beta1, beta2, gain1, gain2 = constants
    scratch = np.empty(min(BLOCK, weight.size), np.float32)
    for start in range(0, weight.size, BLOCK):
        w, m, v, g = (array[start : start + BLOCK] for array in (weight, moment1, moment2, gradient))
        g = g.astype(np.float32, copy=False)
        q = scratch[: w.size]
        np.multiply(g, gain1, out=q)
        m *= beta1
        m += q
        np.multiply(g, g, out=q)
        q *= gain2
        v *= beta2
        v += q
        np.sqrt(v, out=q)
        q += eps
        np.divide(m, q, out=q)
        q *= step_size
        w *= keep
        w -= q
