"""The benchmark case of an operator that moves whole rows: what rre_dispatch, rre_combine and rre_regroup share.

One run applies the operator to its own first output, again and again (`runs.chained`), and compares with a reference in
float64 that is applied as often. The limit is a memcpy of the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work


@dataclass(frozen=True)
class RowOperator:
    """An operator with its inputs.

    Attributes:
        inputs: arrays. The first holds the rows; only its gradient is computed.
        dout: the gradient of the first output.
        bind: module of a backend → function of the inputs that returns a tuple.
        torch_function: the same function of torch tensors; never called without torch.
        reference: rows → all outputs.
        reference_backward: gradient of the first output → gradient of the rows.
    """

    inputs: Sequence[np.ndarray]
    dout: np.ndarray
    bind: Callable[[ModuleType], Callable]
    torch_function: Callable
    reference: Callable[[np.ndarray], Sequence[np.ndarray]]
    reference_backward: Callable[[np.ndarray], np.ndarray]


def row_case(
    op: str, shape: str, limit: str, array_bytes: int, arrays_moved: tuple[int, int], make: Callable[[], RowOperator]
) -> Case:
    """Returns the case of one shape.

    Args:
        op, shape, limit: as in `Case`.
        array_bytes: size of one array of rows.
        arrays_moved: how many such arrays are read and written, forward and forward + backward.
        make: makes the inputs, when the case is prepared.
    """
    forward, both = arrays_moved
    work = {FORWARD: Work(moved_bytes=forward * array_bytes), BOTH: Work(moved_bytes=both * array_bytes)}

    def prepare() -> Prepared:
        operator = make()
        length = runs.chain_length(array_bytes)
        inputs = [Tensor(array) for array in operator.inputs]
        dout = Tensor(operator.dout)
        backends: dict[str, dict[str, Callable]] = {
            name: runs.mindspore_runs(runs.chained(operator.bind(module), length), inputs, dout, [0])
            for name, module in runs.implementations(op).items()
        }
        torch_function = runs.chained(operator.torch_function, length)
        backends["torch"] = runs.torch_runs(torch_function, operator.inputs, operator.dout, [0])
        backends["limit"] = limits.copies(work, length)
        return Prepared(
            runs.by_direction(backends), lambda direction: expected(operator, length, direction), repeats=length
        )

    return Case(op=op, shape=shape, limit=limit, work=work, prepare=prepare)


def expected(operator: RowOperator, length: int, direction: str) -> list[np.ndarray]:
    """Applies the reference `length` times, in float64."""
    outputs: Sequence[np.ndarray] = [operator.inputs[0].astype(np.float64)]
    for _ in range(length):
        outputs = operator.reference(outputs[0])
    if direction == FORWARD:
        return [*outputs]
    gradient = operator.dout.astype(np.float64)
    for _ in range(length):
        gradient = operator.reference_backward(gradient)
    return [*outputs, gradient]
