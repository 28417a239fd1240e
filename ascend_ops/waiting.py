"""Waits for the results of compiled functions without taking a core away from them.

A call of a compiled function returns at once. On a CPU, the thread that then asks MindSpore for a result spins until it
is ready, and takes a core from the threads that compute it. Sleeping instead is worse on virtual machines, whose idle
processors take long to wake. So threads of the lowest priority spin: they run only on otherwise idle cores, and yield
at once. The calling thread sleeps meanwhile.
"""

import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Tensor, get_context

LOWEST_PRIORITY = 19
NUM_THREADS = 4  # calls that can wait at once; further calls queue


@functools.cache
def _waiters() -> ThreadPoolExecutor:
    def lower_priority() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # on Linux, of this thread only

    return ThreadPoolExecutor(NUM_THREADS, "waiter", initializer=lower_priority)


def wait_for(tensor: Tensor) -> np.ndarray:
    """Returns `tensor.asnumpy()`. Everything that was launched before has finished too."""
    return wait_for_all([tensor])[0]


def settle(tensor: Tensor) -> None:
    """On a CPU, waits until a tensor is computed; elsewhere returns at once.

    Call it before a compiled function takes a result of another one: on a CPU, MindSpore waits for such a tensor in the
    calling thread, and spins.
    """
    if get_context("device_target") == "CPU":
        wait_for(tensor)


def wait_for_all(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Returns `asnumpy()` of each tensor."""
    if get_context("device_target") != "CPU":
        return [tensor.asnumpy() for tensor in tensors]
    return _waiters().submit(lambda: [tensor.asnumpy() for tensor in tensors]).result()
