"""Waits for the result of a compiled function without taking a core away from it.

A call of a compiled function returns at once. The thread that then asks MindSpore for a result spins until it is ready.
On two cores this makes a kernel with two threads up to a third slower, though hardly a complete training step. Sleeping
instead is worse on virtual machines, whose idle processors take long to wake. So a thread of the lowest priority spins:
it runs only on an otherwise idle core, and yields at once.
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
    def lower_priority() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # on Linux, of this thread only

    return ThreadPoolExecutor(1, "waiter", initializer=lower_priority)


def wait_for(tensor: Tensor) -> np.ndarray:
    """Returns `tensor.asnumpy()`; the calling thread sleeps meanwhile. Everything launched before has finished too."""
    return _waiter().submit(tensor.asnumpy).result()
