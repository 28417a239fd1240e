"""Shapes at which `python -m ascend_ops.bench` measures rre_dispatch."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import Case
from ascend_ops.bench.row_chain import RowOperator, row_case
from ascend_ops.rre_dispatch import reference

# tokens, hidden, experts, slots; 5,120 is PanGu-Σ's hidden size
SHAPES = ((2048, 256, 16, 4), (8192, 1024, 16, 1), (8192, 5120, 16, 1), (4096, 2048, 64, 1))
QUICK_SHAPES = SHAPES[:2]
VOCAB = 40_000


def random_routing(tokens: int, experts: int, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns token_ids_T, slot_ids_T (slots of equal size, one after the other) and table_DV."""
    rng = np.random.default_rng(0)
    token_ids_T = rng.integers(0, VOCAB, tokens).astype(np.int32)
    slot_ids_T = (np.arange(tokens) * slots // tokens).astype(np.int32)
    return token_ids_T, slot_ids_T, rng.integers(0, experts, (slots, VOCAB)).astype(np.int32)


def cases(quick: bool) -> Iterator[Case]:
    """Yields the shapes that a model has, or a few small ones."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(tokens: int, hidden: int, experts: int, slots: int) -> Case:
    return row_case(
        op="rre_dispatch",
        shape=f"T{tokens} H{hidden} E{experts} D{slots}",
        limit="memcpy of the same bytes, all threads: T·H read and written, as often backward",
        array_bytes=4 * tokens * hidden,
        arrays_moved=(2, 4),
        make=lambda: _make(tokens, hidden, experts, slots),
    )


def _make(tokens: int, hidden: int, experts: int, slots: int) -> RowOperator:
    rng = np.random.default_rng(1)
    x_TH = rng.standard_normal((tokens, hidden), np.float32)
    dout_TH = rng.standard_normal((tokens, hidden), np.float32)
    ids = random_routing(tokens, experts, slots)
    positions_T = reference.rre_dispatch(np.zeros((tokens, 0)), *ids, experts)[2]
    return RowOperator(
        inputs=(x_TH, *ids),
        dout=dout_TH,
        bind=lambda module: _bound(module, experts),
        torch_function=_torch_function(experts, slots),
        reference=lambda x_TH: [*reference.rre_dispatch(x_TH, *ids, experts), np.zeros(1)],
        reference_backward=lambda drows_TH: reference.rre_dispatch_backward(drows_TH, positions_T),
    )


def _bound(module: ModuleType, experts: int) -> Callable:
    def function(x_TH, token_ids_T, slot_ids_T, table_DV):
        return module.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, experts)

    return function


def _torch_function(experts: int, slots: int) -> Callable:
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
