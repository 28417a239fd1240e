"""rre_regroup's AscendC kernels in the emulator: their check, their costs, and mutants of their sources."""

import numpy as np

from ascend_ops.emulator import Operator, Report
from ascend_ops.emulator.cases import Shape, expect, padded, random_rows
from ascend_ops.emulator.kernels import Kernel
from ascend_ops.rre_regroup import reference

HEADER = "rre_regroup/ascend/op_kernel/rre_regroup.h"
HOST = "rre_regroup/ascend/op_host/rre_regroup.cpp"


def random_counts(rng: np.random.Generator, shape: Shape, fill: float = 0.9) -> np.ndarray:
    """Returns int32 [R, G]: the number of rows of each block, together at most `fill` of all rows."""
    blocks = (shape.ranks, shape.slots * shape.experts)
    weights = rng.random(blocks) * (rng.random(blocks) >= shape.skew)
    weights *= (1 - shape.skew) / max(weights.sum(), 1e-9)
    weights[0, -1] += shape.skew
    return np.floor(weights * fill * shape.tokens).astype(np.int32)


def check_regroup(operator: Operator, shape: Shape, dtype: str, seed: int, fill: float = 0.9) -> Report:
    """Checks rre_regroup or rre_regroup_back; `fill` of the rows are not padding."""
    rng = np.random.default_rng(seed)
    counts_RG = random_counts(rng, shape, fill)
    rows_CH = random_rows(rng, shape, dtype)

    (out_CH,), report = operator(rows_CH, padded(counts_RG, 8), cores=shape.cores)

    back = operator.kernel == "rre_regroup_back"
    expected = reference.rre_regroup_backward if back else reference.rre_regroup
    expect(out_CH, expected(rows_CH, counts_RG), "regrouped rows")
    return report


def least_bytes(shape: Shape, item_bytes: int, seed: int) -> int:
    """Returns the bytes of all rows, which are written, and of the rows but padding and the counts, which are read."""
    counts_RG = random_counts(np.random.default_rng(seed), shape)
    read_rows = int(counts_RG.sum())
    return item_bytes * (shape.tokens + read_rows) * shape.hidden + counts_RG.nbytes


def most_launches(shape: Shape) -> float:
    """Returns the launches when neighbouring rows move together."""
    return 1.2 * shape.tokens


MUTANTS = {
    HEADER: {
        "block starts one block too late": (
            "starts.SetValue(block, static_cast<int32_t>(start));\n      start += Rows(counts, block, start);",
            "start += Rows(counts, block, start);\n      starts.SetValue(block, static_cast<int32_t>(start));",
        ),
        "blocks in their old order": ("block = a * inner_ + b, end", "block = b * outer_ + a, end"),
        "turn of the first core": ("mine = turn_ * static_cast<uint32_t>(GetBlockIdx())", "mine = 0"),
        "turns overlap": ("stride = turn_ *", "stride = (turn_ - 1) *"),
        "turn does not continue": ("if (mine + turn_ > end) break;", ""),
        "padding not cleared": ("Clear(total + padding.begin, total + padding.end);", ""),
        "clears one row too many": ("mover_.Word(end, 0)", "mover_.Word(end + 1, 0)"),
    },
}

TIGHT_MUTANTS = {
    HOST: {
        "starts of the blocks": ("2 * blocks * sizeof(int32_t)", "blocks * sizeof(int32_t)"),
        "the zeros' batch": ("platform.ub_bytes - scratch, 3", "platform.ub_bytes - scratch, 2"),
    },
}

KERNELS = (
    Kernel(
        "rre_regroup",
        checks=(check_regroup,),
        least_bytes=least_bytes,
        most_launches=most_launches,
        sources=(HEADER,),
        mutants=MUTANTS,
        tight_mutants=TIGHT_MUTANTS,
    ),
    Kernel(
        "rre_regroup_back",
        checks=(check_regroup,),
        least_bytes=least_bytes,
        most_launches=most_launches,
        mutants={HEADER: {"forward instead of back": ("if (back)", "if (!back)")}},
    ),
)
