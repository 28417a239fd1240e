"""Shapes at which `python -m ascend_ops.bench` measures rre_combine."""

from collections.abc import Iterator

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work
from ascend_ops.rre_combine import reference
from ascend_ops.rre_dispatch.bench import QUICK_SHAPES, SHAPES, random_routing
from ascend_ops.rre_dispatch.reference import rre_dispatch


def cases(quick: bool) -> Iterator[Case]:
    """The shapes of rre_dispatch: what it sorted comes back here."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(tokens, hidden, experts, slots):
    row_bytes = 4 * tokens * hidden
    work = {FORWARD: Work(moved_bytes=3 * row_bytes), BOTH: Work(moved_bytes=5 * row_bytes)}
    return Case(
        op="rre_combine",
        shape=f"T{tokens} H{hidden} E{experts} D{slots}",
        limit="memcpy of the same bytes, all threads: 2·T·H read, T·H written; T·H each backward",
        work=work,
        prepare=lambda: _prepare(tokens, hidden, experts, slots, work),
    )


def _prepare(tokens, hidden, experts, slots, work):
    chance = np.random.default_rng(1)
    rows_TH, residual_TH, dout_TH = (chance.standard_normal((tokens, hidden), np.float32) for _ in range(3))
    positions_T = rre_dispatch(np.zeros((tokens, 0)), *random_routing(tokens, experts, slots), experts)[2]
    arrays = [rows_TH, positions_T, residual_TH]
    # without the residual's gradient, which is dout itself: MindSpore would copy what a graph returns as it came
    inputs, dout = [Tensor(array) for array in arrays], Tensor(dout_TH)
    backends = {
        name: runs.mindspore_runs(_bound(module), inputs, dout, [0])
        for name, module in runs.implementations("rre_combine").items()
    }
    # index_select, whose gradient, index_add_, is twice as fast as the one of rows[positions]
    backends["torch"] = runs.torch_runs(
        lambda rows_TH, positions_T, residual_TH: (residual_TH + rows_TH.index_select(0, positions_T),),
        arrays,
        dout_TH,
        [0],
    )
    backends["limit"] = limits.copies(work)

    def expected(direction):
        out_TH = reference.rre_combine(rows_TH.astype(np.float64), positions_T, residual_TH.astype(np.float64))
        if direction == FORWARD:
            return [out_TH]
        return [out_TH, reference.rre_combine_backward(dout_TH.astype(np.float64), positions_T)[0]]

    return Prepared(runs.by_direction(backends), expected)


def _bound(module):
    def function(rows_TH, positions_T, residual_TH):
        return (module.rre_combine(rows_TH, positions_T, residual_TH),)

    return function
