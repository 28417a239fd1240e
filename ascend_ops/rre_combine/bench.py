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
    rng = np.random.default_rng(1)
    rows_TH, residual_TH, dout_TH = (rng.standard_normal((tokens, hidden), np.float32) for _ in range(3))
    positions_T = rre_dispatch(np.zeros((tokens, 0)), *random_routing(tokens, experts, slots), experts)[2]
    arrays = [rows_TH, positions_T, residual_TH]
    # without the residual's gradient, which is dout itself: MindSpore would copy what a graph returns as it came
    inputs, dout = [Tensor(array) for array in arrays], Tensor(dout_TH)
    length = runs.chain_length(rows_TH.nbytes)
    backends = {
        name: runs.mindspore_runs(runs.chained(_bound(module), length), inputs, dout, [0])
        for name, module in runs.implementations("rre_combine").items()
    }
    backends["torch"] = runs.torch_runs(
        runs.chained(_torch_function, length),
        arrays,
        dout_TH,
        [0],
    )
    backends["limit"] = limits.copies(work, length)

    def expected(direction):
        out_TH, drows_TH = rows_TH.astype(np.float64), dout_TH.astype(np.float64)
        for _ in range(length):
            out_TH = reference.rre_combine(out_TH, positions_T, residual_TH.astype(np.float64))
        if direction == FORWARD:
            return [out_TH]
        for _ in range(length):
            drows_TH = reference.rre_combine_backward(drows_TH, positions_T)[0]
        return [out_TH, drows_TH]

    return Prepared(runs.by_direction(backends), expected, repeats=length)


def _torch_function(rows_TH, positions_T, residual_TH):
    # index_select, whose gradient, index_add_, is twice as fast as the one of rows[positions]
    return (residual_TH + rows_TH.index_select(0, positions_T),)


def _bound(module):
    def function(rows_TH, positions_T, residual_TH):
        return (module.rre_combine(rows_TH, positions_T, residual_TH),)

    return function
