"""Runs an operator's backends in MindSpore, and their counterparts in torch, where it is installed."""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from types import ModuleType

import mindspore as ms
from mindspore import Tensor, nn

from ascend_ops import native
from ascend_ops.bench import limits
from ascend_ops.bench.case import BOTH, FORWARD
from ascend_ops.bench.waiting import wait_for

_log = logging.getLogger("ascend_ops")


@functools.cache
def implementations(operator: str) -> dict[str, ModuleType]:
    """backend → module: "cpu" if the kernels compile here, and "composed"."""
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
    """torch, with as many threads as the kernels have."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(limits.num_threads())
    return torch


class _Seed(nn.Cell):
    """A number whose gradient with respect to `out` is `dout`: a backward pass without the cost of a loss."""

    def construct(self, out, dout):
        return out[0, 0]

    def bprop(self, out, dout, value, dvalue):
        return dout, dout


_seed = _Seed()


def mindspore_runs(
    function: Callable, inputs: Sequence[Tensor], dout: Tensor, differentiate: Sequence[int]
) -> dict[str, Callable[[], list[Tensor]]]:
    """direction → a run of the compiled function.

    Args:
        function: of the inputs; returns a tuple, whose first entry has the gradient `dout`.
        differentiate: numbers of the inputs whose gradients are wanted. Forward + backward returns outputs, then these.
    """

    def seeded(dout, *inputs):
        outputs = function(*inputs)
        return _seed(outputs[0], dout), outputs

    gradient = ms.value_and_grad(seeded, tuple(1 + number for number in differentiate), has_aux=True)

    def both(dout, *inputs):
        (_, outputs), gradients = gradient(dout, *inputs)
        return outputs, gradients

    compiled_forward, compiled_both = ms.jit(function), ms.jit(both)

    def run_forward():
        return list(compiled_forward(*inputs))

    def run_both():
        outputs, gradients = compiled_both(dout, *inputs)
        return [*outputs, *(gradients if isinstance(gradients, tuple | list) else (gradients,))]

    return {FORWARD: _finished(run_forward), BOTH: _finished(run_both)}


def _finished(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    def run_to_the_end():
        tensors = run()
        wait_for(tensors[0])  # and so for the whole graph; copies nothing
        return tensors

    return run_to_the_end


def chain_length(array_bytes: int) -> int:
    """How many applications of an operator that moves arrays of this size make a run: a quarter of a GiB, 2 to 32."""
    return min(max((1 << 28) // max(array_bytes, 1), 2), 32)


def chained(function: Callable, length: int) -> Callable:
    """The function applied to its own first output, again and again: launching a graph costs as much as a small kernel,
    and in a model it is done once for many kernels."""

    def chain(first, *others):
        outputs = function(first, *others)
        for _ in range(length - 1):
            outputs = function(outputs[0], *others)
        return outputs

    return chain


def torch_runs(function: Callable, inputs: Sequence, dout, differentiate: Sequence[int]) -> dict[str, Callable]:
    """The same for a function of torch tensors; {} without torch."""
    torch = torch_or_none()
    if torch is None:
        return {}
    tensors = [torch.from_numpy(array) for array in inputs]
    gradient = torch.from_numpy(dout)

    def forward():
        with torch.no_grad():
            return function(*tensors)

    leaves = [tensors[number].detach().requires_grad_() for number in differentiate]
    with_leaves = list(tensors)
    for number, leaf in zip(differentiate, leaves, strict=True):
        with_leaves[number] = leaf

    def both():
        outputs = function(*with_leaves)
        return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs[0], leaves, gradient)]

    return {FORWARD: forward, BOTH: both}


def by_direction(runs: dict[str, dict[str, Callable]]) -> dict[str, dict[str, Callable]]:
    """backend → direction → run, turned around; a backend may have no runs."""
    directions = list(dict.fromkeys(direction for of in runs.values() for direction in of))
    return {
        direction: {backend: of[direction] for backend, of in runs.items() if direction in of}
        for direction in directions
    }
