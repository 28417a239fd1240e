"""Shapes at which `python -m ascend_ops.bench` measures linear."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Work
from ascend_ops.bench.gradient_case import Differentiable, gradient_case, products
from ascend_ops.linear import reference

# rows, inputs, outputs
SHAPES = ((2048, 256, 256), (2048, 256, 1024), (2048, 1024, 256), (1024, 5120, 5120))
QUICK_SHAPES = SHAPES[:1]


def cases(quick: bool) -> Iterator[Case]:
    """Yields the matrices of small models, and one of PanGu-Σ's."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows: int, inputs: int, outputs: int) -> Case:
    flops = 2 * rows * inputs * outputs
    forward = [("N", "N", rows, outputs, inputs)]
    backward = [("N", "T", rows, inputs, outputs), ("T", "N", inputs, outputs, rows)]
    return gradient_case(
        op="linear",
        shape=f"T{rows} I{inputs} O{outputs}",
        limit="the same matrix products by the same GEMM, all threads",
        work={FORWARD: Work(flops=flops), BOTH: Work(flops=3 * flops)},
        make=lambda: _make(rows, inputs, outputs),
        make_limit=lambda: products(forward, backward),
    )


def _make(rows: int, inputs: int, outputs: int) -> Differentiable:
    rng = np.random.default_rng(0)
    shapes = ((rows, inputs), (inputs, outputs), (outputs,), (rows, outputs))
    *arrays, dout_TO = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return Differentiable(
        inputs=arrays,
        differentiate=(0, 1, 2),
        dout=dout_TO,
        bind=_bound,
        torch_function=_torch_function,
        reference=lambda *inputs: [reference.linear(*inputs)],
        reference_backward=lambda dout_TO, x_TI, weight_IO, bias_O: reference.linear_backward(dout_TO, x_TI, weight_IO),
    )


def _bound(module: ModuleType) -> Callable:
    def function(x_TI, weight_IO, bias_O):
        return (module.linear(x_TI, weight_IO, bias_O),)

    return function


def _torch_function(x_TI, weight_IO, bias_O):
    return (runs.torch_or_none().addmm(bias_O, x_TI, weight_IO),)
