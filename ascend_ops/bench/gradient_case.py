"""The benchmark case of a differentiable operator: what the operators of dense layers share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work


@dataclass(frozen=True)
class Differentiable:
    """An operator with its inputs.

    Attributes:
        inputs: arrays.
        differentiate: indices of the inputs whose gradients are computed.
        dout: the gradient of the first output.
        bind: module of a backend → function of the inputs that returns a tuple.
        torch_function: the same function of torch tensors; never called without torch.
        reference: inputs in float64 → the outputs.
        reference_backward: (dout, *inputs) in float64 → the gradients.
    """

    inputs: Sequence[np.ndarray]
    differentiate: Sequence[int]
    dout: np.ndarray
    bind: Callable[[ModuleType], Callable]
    torch_function: Callable
    reference: Callable[..., Sequence[np.ndarray]]
    reference_backward: Callable[..., Sequence[np.ndarray]]


def gradient_case(
    op: str,
    shape: str,
    limit: str,
    work: Mapping[str, Work],
    make: Callable[[], Differentiable],
    make_limit: Callable[[], Mapping[str, Callable[[], None]]] | None = None,
) -> Case:
    """Returns the case of one shape.

    Args:
        op, shape, limit: as in `Case`.
        work: as in `Case`; its directions are those that are measured.
        make: makes the inputs, when the case is prepared.
        make_limit: direction → the limit; None for a memcpy of the least bytes.
    """

    def prepare() -> Prepared:
        operator = make()
        inputs = [Tensor(array) for array in operator.inputs]
        dout = Tensor(operator.dout)
        backends: dict[str, dict[str, Callable]] = {
            name: runs.mindspore_runs(operator.bind(module), inputs, dout, operator.differentiate)
            for name, module in runs.implementations(op).items()
        }
        backends["torch"] = runs.torch_runs(
            operator.torch_function, operator.inputs, operator.dout, operator.differentiate
        )
        backends["limit"] = dict(limits.copies(work) if make_limit is None else make_limit())
        by_direction = runs.by_direction(backends)
        return Prepared({direction: by_direction[direction] for direction in work}, lambda d: expected(operator, d))

    return Case(op=op, shape=shape, limit=limit, work=work, prepare=prepare)


def expected(operator: Differentiable, direction: str) -> list[np.ndarray]:
    """Applies the reference in float64."""
    wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in operator.inputs]
    outputs = [*operator.reference(*wide)]
    if direction == BOTH:
        outputs += operator.reference_backward(operator.dout.astype(np.float64), *wide)
    return outputs


def products(forward: Sequence[tuple], backward: Sequence[tuple]) -> dict[str, Callable[[], None]]:
    """Returns the limit of an operator that consists of matrix products: direction → these products, one after another.

    Args:
        forward, backward: arguments of `limits.product`.
    """
    functions = [limits.product(*product) for product in (*forward, *backward)]
    if None in functions:
        return {}
    present = [function for function in functions if function is not None]

    def run(some: Sequence[Callable[[], None]]) -> Callable[[], None]:
        def run_all() -> None:
            for function in some:
                function()

        return run_all

    return {FORWARD: run(present[: len(forward)]), BOTH: run(present)}
