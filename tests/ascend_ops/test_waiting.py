"""Waiting for results: in threads of the lowest priority, while the calling thread sleeps."""

import os
import threading

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops import waiting
from ascend_ops.waiting import LOWEST_PRIORITY, settle, wait_for, wait_for_all


class Result:
    """A stand-in for a tensor that says who read it."""

    def __init__(self, value=None):
        self.value = value
        self.priority = None

    def asnumpy(self):
        if isinstance(self.value, Exception):
            raise self.value
        self.priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return self.value


def test_results_are_those_of_the_tensors_in_order():
    tensors = [Tensor(np.full(3, value, np.float32)) for value in (1, 2)]

    assert [array.tolist() for array in wait_for_all(tensors)] == [[1, 1, 1], [2, 2, 2]]
    assert wait_for(tensors[1]).tolist() == [2, 2, 2]


def test_on_a_cpu_another_thread_of_the_lowest_priority_waits():
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    results = [Result(1), Result(2)]

    settle(results[0])
    wait_for(results[1])

    assert [result.priority for result in results] == [LOWEST_PRIORITY] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_on_an_npu_the_calling_thread_reads_and_nothing_waits_before_a_launch(monkeypatch):
    monkeypatch.setattr(waiting, "get_context", lambda key: "Ascend")
    unread = Result()
    result = Result(5)

    settle(unread)

    assert unread.priority is None
    assert wait_for(result) == 5
    assert result.priority == os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_an_error_of_a_kernel_is_raised_by_the_call_that_waits():
    with pytest.raises(RuntimeError, match="the kernel refused"):
        wait_for(Result(RuntimeError("the kernel refused its input")))


def test_several_threads_wait_at_once():
    """Training and the host's thread of ECSS both wait for the same step."""
    both_wait = threading.Barrier(2, timeout=20)

    class Late(Result):
        def asnumpy(self):
            both_wait.wait()
            return 1

    other = threading.Thread(target=lambda: wait_for(Late()))
    other.start()

    assert wait_for(Late()) == 1
    other.join(20)
    assert not other.is_alive()


def test_a_compiled_function_is_complete_when_its_result_has_been_read():
    @ms.jit
    def square(x):
        return x * x

    assert wait_for(square(Tensor(np.array([3.0], np.float32)))).tolist() == [9]
