"""Shapes at which `python -m ascend_ops.bench` measures rre_dispatch."""

from collections.abc import Iterator

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work
from ascend_ops.rre_dispatch import reference

# tokens, hidden, experts, slots; 5,120 is PanGu-Σ's hidden size
SHAPES = ((2048, 256, 16, 4), (8192, 1024, 16, 1), (8192, 5120, 16, 1), (4096, 2048, 64, 1))
QUICK_SHAPES = SHAPES[:2]
VOCAB = 40_000


def random_routing(tokens: int, experts: int, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """token_ids_T, slot_ids_T (equal parts, one after the other) and table_DV."""
    rng = np.random.default_rng(0)
    token_ids_T = rng.integers(0, VOCAB, tokens).astype(np.int32)
    slot_ids_T = (np.arange(tokens) * slots // tokens).astype(np.int32)
    return token_ids_T, slot_ids_T, rng.integers(0, experts, (slots, VOCAB)).astype(np.int32)


def cases(quick: bool) -> Iterator[Case]:
    """The binding shapes, or few small ones."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(tokens, hidden, experts, slots):
    row_bytes = 4 * tokens * hidden
    work = {FORWARD: Work(moved_bytes=2 * row_bytes), BOTH: Work(moved_bytes=4 * row_bytes)}
    return Case(
        op="rre_dispatch",
        shape=f"T{tokens} H{hidden} E{experts} D{slots}",
        limit="memcpy of the same bytes, all threads: T·H read and written, as often backward",
        work=work,
        prepare=lambda: _prepare(tokens, hidden, experts, slots, work),
    )


def _prepare(tokens, hidden, experts, slots, work):
    rng = np.random.default_rng(1)
    x_TH = rng.standard_normal((tokens, hidden), np.float32)
    dout_TH = rng.standard_normal((tokens, hidden), np.float32)
    ids = random_routing(tokens, experts, slots)
    inputs, dout = [Tensor(array) for array in (x_TH, *ids)], Tensor(dout_TH)
    length = runs.chain_length(x_TH.nbytes)
    backends = {
        name: runs.mindspore_runs(runs.chained(_bound(module, experts), length), inputs, dout, [0])
        for name, module in runs.implementations("rre_dispatch").items()
    }
    torch_function = runs.chained(_torch_function(experts, slots), length)
    backends["torch"] = runs.torch_runs(torch_function, [x_TH, *ids], dout_TH, [0])
    backends["limit"] = limits.copies(work, length)

    def expected(direction):
        rows_TH, dx_TH = x_TH.astype(np.float64), dout_TH.astype(np.float64)
        for _ in range(length):
            rows_TH, counts_G, positions_T = reference.rre_dispatch(rows_TH, *ids, experts)
        if direction == FORWARD:
            return [rows_TH, counts_G, positions_T, np.zeros(1)]
        for _ in range(length):
            dx_TH = reference.rre_dispatch_backward(dx_TH, positions_T)
        return [rows_TH, counts_G, positions_T, np.zeros(1), dx_TH]

    return Prepared(runs.by_direction(backends), expected, repeats=length)


def _bound(module, experts):
    def function(x_TH, token_ids_T, slot_ids_T, table_DV):
        return module.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, experts)

    return function


def _torch_function(experts, slots):
    """Lookup, stable argsort, index_select (its gradient, index_add_, is twice as fast as the one of x[order])."""
    torch = runs.torch_or_none()

    def function(x_TH, token_ids_T, slot_ids_T, table_DV):
        groups_T = slot_ids_T * experts + table_DV[slot_ids_T, token_ids_T]
        order_T = torch.argsort(groups_T, stable=True)
        positions_T = torch.empty_like(order_T)
        positions_T[order_T] = torch.arange(len(order_T))
        counts_G = torch.bincount(groups_T, minlength=slots * experts)
        return x_TH.index_select(0, order_T), counts_G, positions_T, torch.zeros(1)

    return function
