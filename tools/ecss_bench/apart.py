"""Functions that run in a process of their own, whose memory is free afterwards."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from mindpangu.errors import MindPanguError


def run_apart(function: Callable, *arguments):
    """`function(*arguments)`, computed elsewhere. MindSpore frees nothing of a compiled function's memory.

    Raises:
        MindPanguError: the process died, and what it raised itself.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_die_with_parent) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise MindPanguError(
                f"the process of {function.__name__}{arguments} was killed, for want of memory most likely: 64k tokens "
                "of width 64 need 20 GB; measure fewer with --tokens"
            ) from None


def _die_with_parent() -> None:
    """Else a process with gigabytes would wait forever for a parent that was killed."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
