"""Waiting for what a compiled function computes, without taking a core away from it.

A call of a compiled function returns at once. MindSpore lets the thread that then asks for a result spin until it is
there; on two cores that makes one kernel with two threads up to a third slower (a whole training step hardly). Sleeping
instead is worse on virtual machines, whose idle processors take long to wake. So a thread of the lowest priority spins:
it runs where nothing else wants to, and gives way at once.
"""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Tensor

LOWEST_PRIORITY = 19


@functools.cache
def _waiter() -> ThreadPoolExecutor:
    def give_way():
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # of this thread alone, on Linux

    return ThreadPoolExecutor(1, "waiter", initializer=give_way)


def wait_for(tensor: Tensor) -> np.ndarray:
    """`tensor.asnumpy()`; the calling thread sleeps meanwhile. All that was launched before is finished then, too."""
    return _waiter().submit(tensor.asnumpy).result()
