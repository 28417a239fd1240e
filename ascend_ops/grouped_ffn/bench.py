"""Shapes at which `python -m ascend_ops.bench` measures grouped_ffn."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work
from ascend_ops.grouped_ffn import reference

# rows, hidden, inner, experts, each slot's share of the rows, whether all rows of a slot go to one expert
SHAPES = (
    (2048, 256, 1024, 16, (1,), False),
    (2048, 256, 1024, 64, (1,), False),
    (2048, 256, 1024, 16, (1,), True),
    (2048, 1024, 4096, 16, (1,), False),
    (2048, 256, 1024, 16, (1 / 2, 3 / 8, 1 / 8, 0), False),
)
QUICK_SHAPES = (SHAPES[0], SHAPES[1], SHAPES[4])


def cases(quick: bool) -> Iterator[Case]:
    """Yields rows spread over the experts at random, once all on one expert, and once in slots of several sizes."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows: int, hidden: int, inner: int, experts: int, shares: tuple[float, ...], skewed: bool) -> Case:
    flops = 4 * rows * hidden * inner
    slots = f" D{len(shares)}" if len(shares) > 1 else ""
    return Case(
        op="grouped_ffn",
        shape=f"T{rows} H{hidden} F{inner} E{experts}{slots}" + (" skewed" if skewed else ""),
        limit="all rows through one expert's weights by the same GEMM, all threads; gradients included",
        work={FORWARD: Work(flops=flops), BOTH: Work(flops=3 * flops)},
        prepare=lambda: _prepare(rows, hidden, inner, experts, shares, skewed),
    )


def _prepare(rows: int, hidden: int, inner: int, experts: int, shares: tuple[float, ...], skewed: bool) -> Prepared:
    rng = np.random.default_rng(0)
    rows_TH = rng.standard_normal((rows, hidden), np.float32)
    dout_TH = rng.standard_normal((rows, hidden), np.float32)
    share_E = np.eye(experts)[experts // 2] if skewed else np.full(experts, 1 / experts)
    counts_G = np.concatenate([rng.multinomial(int(rows * share), share_E) for share in shares]).astype(np.int32)
    shapes = ((experts, hidden, inner), (experts, inner), (experts, inner, hidden), (experts, hidden))
    slabs = [np.float32(0.05) * rng.standard_normal(shape, np.float32) for shape in shapes * len(shares)]
    arrays = [rows_TH, counts_G, *slabs]
    inputs = [Tensor(array) for array in arrays]
    dout = Tensor(dout_TH)
    differentiate = [0, *range(2, len(arrays))]
    backends: dict[str, dict[str, Callable]] = {
        name: runs.mindspore_runs(_bound(module), inputs, dout, differentiate)
        for name, module in runs.implementations("grouped_ffn").items()
    }
    backends["torch"] = runs.torch_runs(_torch_function(), arrays, dout_TH, differentiate)
    backends["limit"] = limits.dense_chain(rows, hidden, inner)

    def expected(direction: str) -> list[np.ndarray]:
        wide = [slab.astype(np.float64) for slab in slabs]
        out_TH = reference.grouped_ffn(rows_TH.astype(np.float64), counts_G, wide)
        if direction == FORWARD:
            return [out_TH]
        drows_TH, dslabs = reference.grouped_ffn_backward(
            dout_TH.astype(np.float64), rows_TH.astype(np.float64), counts_G, wide
        )
        return [out_TH, drows_TH, *dslabs]

    return Prepared(runs.by_direction(backends), expected)


def _bound(module: ModuleType) -> Callable:
    def function(rows_TH, counts_G, *slabs):
        return (module.grouped_ffn(rows_TH, counts_G, slabs),)

    return function


def _torch_function() -> Callable:
    """Loops over the experts of all slots.

    It uses split and unbind because the gradient of up[expert] fills E matrices with zeros each time, and addmm for
    matmul and bias in one.
    """
    torch = runs.torch_or_none()

    def function(rows_TH, counts_G, *slabs):
        outputs = []
        tensors = ([part for slab in slabs[i::4] for part in slab.unbind(0)] for i in range(4))
        experts = zip(*tensors, strict=True)
        for rows, (up, up_bias, down, down_bias) in zip(rows_TH.split(counts_G.tolist()), experts, strict=True):
            u = torch.addmm(up_bias, rows, up)
            outputs.append(torch.addmm(down_bias, u * torch.sigmoid(1.702 * u), down))
        return (torch.cat(outputs),)

    return function
