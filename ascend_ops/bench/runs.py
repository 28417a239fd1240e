"""Runs an operator's backends in MindSpore, and their counterparts in torch if it is installed."""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from types import ModuleType

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ascend_ops import native
from ascend_ops.bench import limits
from ascend_ops.bench.case import BOTH, FORWARD
from ascend_ops.waiting import wait_for

_log = logging.getLogger("ascend_ops")


@functools.cache
def implementations(operator: str) -> dict[str, ModuleType]:
    """Returns backend → module: "cpu" if the kernels compile here, and "composed"."""
    found = {}
    try:
        native.library(operator)
        found["cpu"] = importlib.import_module(f"ascend_ops.{operator}.cpu")
    except native.CompileError as error:
        _log.warning("%s: only the composed form is measured: %s", operator, error)
    found["composed"] = importlib.import_module(f"ascend_ops.{operator}.composed")
    return found


@functools.cache
def torch_or_none() -> ModuleType | None:
    """Returns torch, set to as many threads as the kernels use, or None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(limits.num_threads())
    return torch


class _Seed(nn.Cell):
    """A scalar whose gradient with respect to `out` is `dout`: a backward pass without the cost of a loss."""

    def construct(self, out, dout):
        return out[0, 0]

    def bprop(self, out, dout, value, dvalue):
        return dout, dout


_seed = _Seed()


def mindspore_runs(
    function: Callable, inputs: Sequence[Tensor], dout: Tensor, differentiate: Sequence[int]
) -> dict[str, Callable[[], list[Tensor]]]:
    """Returns direction → a run of the compiled function.

    Args:
        function: takes the inputs and returns a tuple.
        inputs: its arguments.
        dout: gradient of the first output.
        differentiate: indices of the inputs whose gradients forward + backward returns after the outputs.
    """

    def seeded(dout, *inputs):
        outputs = function(*inputs)
        return _seed(outputs[0], dout), outputs

    gradient = ms.value_and_grad(seeded, tuple(1 + index for index in differentiate), has_aux=True)

    def both(dout, *inputs):
        (_, outputs), gradients = gradient(dout, *inputs)
        return outputs, gradients

    compiled_forward = ms.jit(function)
    compiled_both = ms.jit(both)

    def run_forward() -> list[Tensor]:
        return list(compiled_forward(*inputs))

    def run_both() -> list[Tensor]:
        outputs, gradients = compiled_both(dout, *inputs)
        return [*outputs, *(gradients if isinstance(gradients, tuple | list) else (gradients,))]

    return {FORWARD: _finished(run_forward), BOTH: _finished(run_both)}


def _finished(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    def run_and_wait() -> list[Tensor]:
        tensors = run()
        wait_for(tensors[0])  # and with it for the complete graph; copies nothing
        return tensors

    return run_and_wait


def chain_length(array_bytes: int) -> int:
    """Returns how often one run applies an operator to arrays of this size: a quarter of a GiB in all, 2 to 32
    times."""
    return min(max((1 << 28) // max(array_bytes, 1), 2), 32)


def chained(function: Callable, length: int) -> Callable:
    """Applies a function to its own first output, again and again.

    Launching a graph costs as much as a small kernel, and a model launches it once for many kernels.
    """

    def chain(first, *others):
        outputs = function(first, *others)
        for _ in range(length - 1):
            outputs = function(outputs[0], *others)
        return outputs

    return chain


def torch_runs(
    function: Callable, inputs: Sequence[np.ndarray], dout: np.ndarray, differentiate: Sequence[int]
) -> dict[str, Callable]:
    """Like `mindspore_runs`, for a function of torch tensors. Returns {} without torch."""
    torch = torch_or_none()
    if torch is None:
        return {}
    tensors = [torch.from_numpy(array) for array in inputs]
    gradient = torch.from_numpy(dout)

    def forward():
        with torch.no_grad():
            return function(*tensors)

    leaves = [tensors[index].detach().requires_grad_() for index in differentiate]
    with_leaves = list(tensors)
    for index, leaf in zip(differentiate, leaves, strict=True):
        with_leaves[index] = leaf

    def both():
        outputs = function(*with_leaves)
        return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs[0], leaves, gradient)]

    return {FORWARD: forward, BOTH: both}


def by_direction(runs: dict[str, dict[str, Callable]]) -> dict[str, dict[str, Callable]]:
    """Turns backend → direction → run into direction → backend → run; a backend may have no runs."""
    directions = list(dict.fromkeys(direction for functions in runs.values() for direction in functions))
    return {
        direction: {backend: functions[direction] for backend, functions in runs.items() if direction in functions}
        for direction in directions
    }
