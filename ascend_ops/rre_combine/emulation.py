"""rre_combine's AscendC kernel in the emulator: its check, its costs, and mutants of its sources."""

import numpy as np

from ascend_ops.emulator import Operator, Report, from_bfloat16, to_bfloat16
from ascend_ops.emulator.cases import Shape, expect, padded, random_rows
from ascend_ops.emulator.kernels import Kernel
from ascend_ops.rre_combine import reference

HEADER = "rre_combine/ascend/op_kernel/rre_combine.h"
HOST = "rre_combine/ascend/op_host/rre_combine.cpp"


def check_combine(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """Checks rre_combine: one addition in float32, rounded once."""
    rng = np.random.default_rng(seed)
    rows_TH = random_rows(rng, shape, dtype)
    residual_TH = random_rows(rng, shape, dtype)
    positions_T = rng.permutation(shape.tokens).astype(np.int32)

    (sum_TH,), report = operator(rows_TH, padded(positions_T, 8), residual_TH, cores=shape.cores)

    if dtype == "bfloat16":
        wide_TH = reference.rre_combine(from_bfloat16(rows_TH), positions_T, from_bfloat16(residual_TH))
        expected_TH = to_bfloat16(wide_TH)
    else:
        expected_TH = reference.rre_combine(rows_TH, positions_T, residual_TH)
    expect(sum_TH, expected_TH, "sum")
    return report


def least_bytes(shape: Shape, item_bytes: int, seed: int) -> int:
    """Returns the bytes of two arrays of rows and the positions, which are read, and of one array of rows written."""
    return 3 * item_bytes * shape.tokens * shape.hidden + 4 * shape.tokens


def most_launches(shape: Shape) -> float:
    """Returns the launches for wide rows, which move one by one: the row, its residual and the sum."""
    return 3.1 * shape.tokens


def cann_cost(shape: Shape, item_bytes: int) -> tuple[int, int]:
    """Returns the cost of CANN's moe_token_unpermute and of adding the residual, which both move row by row."""
    return 5 * item_bytes * shape.tokens * shape.hidden + 4 * shape.tokens, 2 * shape.tokens


MUTANTS = {
    HEADER: {
        "residual of the row before": (
            "residual_[Element(first + row, column)]",
            "residual_[Element(first, column)]",
        ),
        "rows over the residual": ("in[tile_ + i * width]", "in[i * width]"),
        "residual added to itself": ("Cast(right, in[tile_],", "Cast(right, in,"),
        "rounding of other chips": (
            "IsSameType<T, half>::value ? RoundMode::CAST_NONE : RoundMode::CAST_RINT",
            "RoundMode::CAST_RINT",
        ),
        "float buffer of one row": ("2 * tile_ * sizeof(float)", "tile_ * sizeof(float)"),
        "more copies than the tiling knows": ("pipe_.InitBuffer(out_, 2,", "pipe_.InitBuffer(out_, 4,"),
    },
}

TIGHT_MUTANTS = {
    HOST: {
        "positions of a tile of combine": ("platform.ub_bytes - scratch", "platform.ub_bytes"),
        "copies as float": ("? 6 : 10", "? 6 : 6"),
    },
}

KERNELS = (
    Kernel(
        "rre_combine",
        checks=(check_combine,),
        least_bytes=least_bytes,
        most_launches=most_launches,
        cann_cost=cann_cost,
        sources=(HEADER,),
        mutants=MUTANTS,
        tight_mutants=TIGHT_MUTANTS,
    ),
)
