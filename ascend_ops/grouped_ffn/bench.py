"""Shapes at which `python -m ascend_ops.bench` measures grouped_ffn."""

from collections.abc import Iterator

import numpy as np
from mindspore import Tensor

from ascend_ops.bench import limits, runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Prepared, Work
from ascend_ops.grouped_ffn import reference

# rows, hidden, inner, experts, what part of the rows each slot has, all rows of a slot on one expert
SHAPES = (
    (2048, 256, 1024, 16, (1,), False),
    (2048, 256, 1024, 64, (1,), False),
    (2048, 256, 1024, 16, (1,), True),
    (2048, 1024, 4096, 16, (1,), False),
    (2048, 256, 1024, 16, (1 / 2, 3 / 8, 1 / 8, 0), False),
)
QUICK_SHAPES = (SHAPES[0], SHAPES[1], SHAPES[4])


def cases(quick: bool) -> Iterator[Case]:
    """Rows spread over the experts by rng; once all of them on one; once in slots of all sizes, one unused."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(rows, hidden, inner, experts, slots, skewed):
    flops = 4 * rows * hidden * inner
    return Case(
        op="grouped_ffn",
        shape=f"T{rows} H{hidden} F{inner} E{experts}"
        + (f" D{len(slots)}" if len(slots) > 1 else "")
        + (" skewed" if skewed else ""),
        limit="all rows through one expert's weights by the same GEMM, all threads; gradients included",
        work={FORWARD: Work(flops=flops), BOTH: Work(flops=3 * flops)},
        prepare=lambda: _prepare(rows, hidden, inner, experts, slots, skewed),
    )


def _prepare(rows, hidden, inner, experts, slots, skewed):
    rng = np.random.default_rng(0)
    rows_TH, dout_TH = (rng.standard_normal((rows, hidden), np.float32) for _ in range(2))
    share_E = np.eye(experts)[experts // 2] if skewed else np.full(experts, 1 / experts)
    counts_G = np.concatenate([rng.multinomial(int(rows * part), share_E) for part in slots]).astype(np.int32)
    shapes = ((experts, hidden, inner), (experts, inner), (experts, inner, hidden), (experts, hidden))
    slabs = [np.float32(0.05) * rng.standard_normal(shape, np.float32) for shape in shapes * len(slots)]
    arrays = [rows_TH, counts_G, *slabs]
    inputs, dout = [Tensor(array) for array in arrays], Tensor(dout_TH)
    differentiate = [0, *range(2, len(arrays))]
    backends = {
        name: runs.mindspore_runs(_bound(module), inputs, dout, differentiate)
        for name, module in runs.implementations("grouped_ffn").items()
    }
    backends["torch"] = runs.torch_runs(_torch_function(), arrays, dout_TH, differentiate)
    backends["limit"] = limits.dense_chain(rows, hidden, inner)

    def expected(direction):
        wide = [slab.astype(np.float64) for slab in slabs]
        out_TH = reference.grouped_ffn(rows_TH.astype(np.float64), counts_G, wide)
        if direction == FORWARD:
            return [out_TH]
        doubles = (dout_TH.astype(np.float64), rows_TH.astype(np.float64))
        drows_TH, dslabs = reference.grouped_ffn_backward(*doubles, counts_G, wide)
        return [out_TH, drows_TH, *dslabs]

    return Prepared(runs.by_direction(backends), expected)


def _bound(module):
    def function(rows_TH, counts_G, *slabs):
        return (module.grouped_ffn(rows_TH, counts_G, slabs),)

    return function


def _torch_function():
    """A loop over the experts of all slots. split and unbind, as the gradient of up[expert] fills E matrices with zeros
    each time; addmm for matmul and bias in one."""
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
