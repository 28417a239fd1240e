"""Shapes at which `python -m ascend_ops.bench` measures rre_combine."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench.case import Case
from ascend_ops.bench.row_chain import RowOperator, row_case
from ascend_ops.rre_combine import reference
from ascend_ops.rre_dispatch.bench import QUICK_SHAPES, SHAPES, random_routing
from ascend_ops.rre_dispatch.reference import rre_dispatch


def cases(quick: bool) -> Iterator[Case]:
    """Yields the shapes of rre_dispatch: rre_combine undoes its sorting."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(tokens: int, hidden: int, experts: int, slots: int) -> Case:
    return row_case(
        op="rre_combine",
        shape=f"T{tokens} H{hidden} E{experts} D{slots}",
        limit="memcpy of the same bytes, all threads: 2·T·H read, T·H written; T·H each backward",
        array_bytes=4 * tokens * hidden,
        # without the residual's gradient, which is dout itself, because MindSpore copies an input that a graph returns
        arrays_moved=(3, 5),
        make=lambda: _make(tokens, hidden, experts, slots),
    )


def _make(tokens: int, hidden: int, experts: int, slots: int) -> RowOperator:
    rng = np.random.default_rng(1)
    rows_TH = rng.standard_normal((tokens, hidden), np.float32)
    residual_TH = rng.standard_normal((tokens, hidden), np.float32)
    dout_TH = rng.standard_normal((tokens, hidden), np.float32)
    positions_T = rre_dispatch(np.zeros((tokens, 0)), *random_routing(tokens, experts, slots), experts)[2]
    wide_residual_TH = residual_TH.astype(np.float64)
    return RowOperator(
        inputs=(rows_TH, positions_T, residual_TH),
        dout=dout_TH,
        bind=_bound,
        torch_function=_torch_function,
        reference=lambda rows_TH: [reference.rre_combine(rows_TH, positions_T, wide_residual_TH)],
        reference_backward=lambda dout_TH: reference.rre_combine_backward(dout_TH, positions_T)[0],
    )


def _bound(module: ModuleType) -> Callable:
    def function(rows_TH, positions_T, residual_TH):
        return (module.rre_combine(rows_TH, positions_T, residual_TH),)

    return function


def _torch_function(rows_TH, positions_T, residual_TH):
    # index_select, because its gradient, index_add_, is twice as fast as that of rows[positions]
    return (residual_TH + rows_TH.index_select(0, positions_T),)
