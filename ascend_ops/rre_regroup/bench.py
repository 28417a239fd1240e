"""Shapes at which `python -m ascend_ops.bench` measures rre_regroup."""

from collections.abc import Iterator

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work
from ascend_ops.rre_regroup import reference

# rows, hidden, sources, groups
SHAPES = ((2048, 256, 4, 16), (8192, 1024, 8, 16), (8192, 5120, 8, 16), (4096, 2048, 8, 64))
QUICK_SHAPES = SHAPES[:2]


def cases(quick: bool) -> Iterator[Case]:
    """As many rows as rre_dispatch sorts, from 4 or 8 sources; a sixteenth of them is padding."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows, hidden, sources, groups):
    row_bytes = 4 * rows * hidden
    work = {FORWARD: Work(moved_bytes=2 * row_bytes), BOTH: Work(moved_bytes=4 * row_bytes)}
    return Case(
        op="rre_regroup",
        shape=f"C{rows} H{hidden} A{sources} B{groups}",
        limit="memcpy of the same bytes, all threads: C·H read and written, as often backward",
        work=work,
        prepare=lambda: _prepare(rows, hidden, sources, groups, work),
    )


def _prepare(rows, hidden, sources, groups, work):
    rng = np.random.default_rng(0)
    rows_CH, dout_CH = (rng.standard_normal((rows, hidden), np.float32) for _ in range(2))
    blocks = np.full(sources * groups, 1 / (sources * groups))
    counts_AB = rng.multinomial(rows - rows // 16, blocks).reshape(sources, groups).astype(np.int32)
    inputs, dout = [Tensor(rows_CH), Tensor(counts_AB)], Tensor(dout_CH)
    length = runs.chain_length(rows_CH.nbytes)
    backends = {
        name: runs.mindspore_runs(runs.chained(_bound(module), length), inputs, dout, [0])
        for name, module in runs.implementations("rre_regroup").items()
    }
    backends["torch"] = runs.torch_runs(runs.chained(_torch_function(), length), [rows_CH, counts_AB], dout_CH, [0])
    backends["limit"] = limits.copies(work, length)

    def expected(direction):
        out_CH, drows_CH = rows_CH.astype(np.float64), dout_CH.astype(np.float64)
        for _ in range(length):
            out_CH = reference.rre_regroup(out_CH, counts_AB)
        if direction == FORWARD:
            return [out_CH]
        for _ in range(length):
            drows_CH = reference.rre_regroup_backward(drows_CH, counts_AB)
        return [out_CH, drows_CH]

    return Prepared(runs.by_direction(backends), expected, repeats=length)


def _bound(module):
    def function(rows_CH, counts_AB):
        return (module.rre_regroup(rows_CH, counts_AB),)

    return function


def _torch_function():
    """split, reorder, concatenate: whole blocks, so no index; its gradient is made of slices too."""
    torch = runs.torch_or_none()

    def function(rows_CH, counts_AB):
        sources, groups = counts_AB.shape
        counts = counts_AB.flatten().tolist()
        padding = len(rows_CH) - sum(counts)
        blocks = rows_CH.split([*counts, padding])
        ordered = [blocks[a * groups + b] for b in range(groups) for a in range(sources)]
        return (torch.cat([*ordered, torch.zeros_like(blocks[-1])]),)

    return function
