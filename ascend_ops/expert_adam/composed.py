"""expert_adam in NumPy, block by block; NumPy lets go of the interpreter, so threads share out the pieces."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BLOCK = 1 << 15  # elements worked on at a time: w, m, v, g and scratch stay in the L2 cache
PIECE = 1 << 19  # elements that one thread takes at a time


def expert_adam(weight, moment1, moment2, gradient, experts_U, coefficients):
    """See `ascend_ops.expert_adam`; takes its checked arguments and their Coefficients."""
    size = weight[0].size
    flat = [array.reshape(len(array), size) for array in (weight, moment1, moment2, gradient)]

    def update(position, start):
        rows = [array[experts_U[position], start : start + PIECE] for array in flat]
        step_size, eps = coefficients.step_size_U[position], coefficients.eps_U[position]
        _update(*rows, step_size, eps, *coefficients.constants)

    pieces = [(position, start) for position in range(len(experts_U)) for start in range(0, size, PIECE)]
    if len(experts_U) * size <= BLOCK:  # starting threads takes longer
        for piece in pieces:
            update(*piece)
        return
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda piece: update(*piece), pieces):
            pass


def _update(weight, moment1, moment2, gradient, step_size, eps, keep, beta1, beta2, gain1, gain2):
    """The arrays are flat. The order of the operations is that of cpu.cc."""
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
