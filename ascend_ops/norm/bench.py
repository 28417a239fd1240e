"""Shapes at which `python -m ascend_ops.bench` measures norm."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Work
from ascend_ops.bench.gradient_case import Differentiable, gradient_case
from ascend_ops.norm import reference

EPSILON = 2.0**-17  # float32 holds it exactly

# rows, width, name
SHAPES = (
    (2048, 256, "layer_norm"),
    (2048, 256, "add_layer_norm"),
    (2048, 5120, "layer_norm"),
    (2048, 5120, "add_rms_norm"),
)
QUICK_SHAPES = SHAPES[:2]


def cases(quick: bool) -> Iterator[Case]:
    """Yields both norms, with and without an addition."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows: int, width: int, name: str) -> Case:
    adds = name.startswith("add")
    array = 4 * rows * width
    forward = 4 if adds else 2
    return gradient_case(
        op="norm",
        shape=f"{name} T{rows} H{width}",
        limit="memcpy of the same bytes, all threads: each array of rows once",
        work={FORWARD: Work(moved_bytes=forward * array), BOTH: Work(moved_bytes=(forward + 3) * array)},
        make=lambda: _make(rows, width, name),
    )


def _make(rows: int, width: int, name: str) -> Differentiable:
    rng = np.random.default_rng(0)
    adds = name.startswith("add")
    plain = name.removeprefix("add_")
    num_arrays = 2 if adds else 1
    x = [rng.standard_normal((rows, width), np.float32) for _ in range(num_arrays)]
    weights = [rng.standard_normal(width, np.float32) for _ in range(2 if plain == "layer_norm" else 1)]

    def norm(*inputs):
        return [getattr(reference, plain)(sum(inputs[:num_arrays]), *inputs[num_arrays:], EPSILON)]

    def backward(dout_TH, *inputs):
        total_TH = sum(inputs[:num_arrays])
        dx_TH, *dweights = getattr(reference, f"{plain}_backward")(dout_TH, total_TH, inputs[num_arrays], EPSILON)
        return [*[dx_TH] * num_arrays, *dweights]

    def torch_function(*inputs):
        functional = runs.torch_or_none().nn.functional
        total = inputs[0] + inputs[1] if adds else inputs[0]
        return (getattr(functional, plain)(total, (width,), *inputs[num_arrays:], eps=EPSILON),)

    return Differentiable(
        inputs=(*x, *weights),
        differentiate=range(len(x) + len(weights)),
        dout=rng.standard_normal((rows, width), np.float32),
        bind=lambda module: _bound(module, name),
        torch_function=torch_function,
        reference=norm,
        reference_backward=backward,
    )


def _bound(module: ModuleType, name: str) -> Callable:
    norm = getattr(module, name)
    adds = name.startswith("add")

    def function(*inputs):
        found = norm(*inputs, EPSILON)
        return (found[1],) if adds else (found,)

    return function
