"""Shapes at which `python -m ascend_ops.bench` measures rre_regroup."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import Case
from ascend_ops.bench.row_chain import RowOperator, row_case
from ascend_ops.rre_regroup import reference

# rows, hidden, sources, groups
SHAPES = ((2048, 256, 4, 16), (8192, 1024, 8, 16), (8192, 5120, 8, 16), (4096, 2048, 8, 64))
QUICK_SHAPES = SHAPES[:2]


def cases(quick: bool) -> Iterator[Case]:
    """Yields as many rows as rre_dispatch sorts, from 4 or 8 sources; a sixteenth of them is padding."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows: int, hidden: int, sources: int, groups: int) -> Case:
    return row_case(
        op="rre_regroup",
        shape=f"C{rows} H{hidden} R{sources} G{groups}",
        limit="memcpy of the same bytes, all threads: C·H read and written, as often backward",
        array_bytes=4 * rows * hidden,
        arrays_moved=(2, 4),
        make=lambda: _make(rows, hidden, sources, groups),
    )


def _make(rows: int, hidden: int, sources: int, groups: int) -> RowOperator:
    rng = np.random.default_rng(0)
    rows_CH = rng.standard_normal((rows, hidden), np.float32)
    dout_CH = rng.standard_normal((rows, hidden), np.float32)
    shares = np.full(sources * groups, 1 / (sources * groups))
    counts_RG = rng.multinomial(rows - rows // 16, shares).reshape(sources, groups).astype(np.int32)
    return RowOperator(
        inputs=(rows_CH, counts_RG),
        dout=dout_CH,
        bind=_bound,
        torch_function=_torch_function(),
        reference=lambda rows_CH: [reference.rre_regroup(rows_CH, counts_RG)],
        reference_backward=lambda dout_CH: reference.rre_regroup_backward(dout_CH, counts_RG),
    )


def _bound(module: ModuleType) -> Callable:
    def function(rows_CH, counts_RG):
        return (module.rre_regroup(rows_CH, counts_RG),)

    return function


def _torch_function() -> Callable:
    """Splits, reorders and concatenates complete blocks, without an index; the gradient consists of slices, too."""
    torch = runs.torch_or_none()

    def function(rows_CH, counts_RG):
        sources, groups = counts_RG.shape
        counts = counts_RG.flatten().tolist()
        padding = len(rows_CH) - sum(counts)
        blocks = rows_CH.split([*counts, padding])
        ordered = [blocks[source * groups + group] for group in range(groups) for source in range(sources)]
        return (torch.cat([*ordered, torch.zeros_like(blocks[-1])]),)

    return function
