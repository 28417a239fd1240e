"""Runs functions in a child process, whose memory is freed afterwards."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from mindpangu.errors import MindPanguError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def run_in_child_process(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """Returns `function(*arguments)`, computed in a child process, because MindSpore never frees a compiled function.

    Raises:
        MindPanguError: the process was killed. Exceptions of the function are passed on.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_die_with_parent) as pool:
        try:
            return pool.submit(function, *arguments, **options).result()
        except BrokenProcessPool:
            raise MindPanguError(
                f"the process of {function.__name__}{arguments} was killed, probably because it ran out of memory: 64k "
                "tokens of width 64 need 20 GB; measure fewer with --tokens"
            ) from None


def _die_with_parent() -> None:
    """Ends this process when its parent is killed, instead of waiting forever with gigabytes of memory."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
