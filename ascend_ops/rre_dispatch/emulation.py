"""rre_dispatch's AscendC kernels in the emulator: their checks, their costs, and mutants of their sources."""

import numpy as np

from ascend_ops.emulator import Operator, Report
from ascend_ops.emulator.cases import Shape, expect, padded, random_rows
from ascend_ops.emulator.kernels import Kernel
from ascend_ops.rre_dispatch import reference

HEADER = "rre_dispatch/ascend/op_kernel/rre_dispatch.h"
ENTRY = "rre_dispatch/ascend/op_kernel/rre_dispatch.cpp"
HOST = "rre_dispatch/ascend/op_host/rre_dispatch.cpp"
MOVE_HEADER = "rre_dispatch/ascend/op_kernel/rre_move_rows.h"
MOVE_HOST = "rre_dispatch/ascend/op_host/rre_move_rows.cpp"
SHARED_HEADER = "ascend/rre_kernel.h"  # its mutants run here because these kernels use all of it
SHARED_HOST = "ascend/rre_host.h"
SHARED_LIMITS = "ascend/rre_limits.h"


def random_ids(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns int32 token_ids_T and slot_ids_T, and a uint16 table_DV."""
    token_ids_T = rng.integers(0, shape.vocab_size, shape.tokens).astype(np.int32)
    token_ids_T[rng.random(shape.tokens) < shape.skew] = shape.vocab_size - 1
    slot_ids_T = np.sort(rng.integers(0, shape.slots, shape.tokens)).astype(np.int32)
    table_DV = rng.integers(0, shape.experts, (shape.slots, shape.vocab_size)).astype(np.uint16)
    return token_ids_T, slot_ids_T, table_DV


def check_dispatch(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """Checks rre_dispatch; with several ranks in the order of `dispatch_all_to_all`."""
    rng = np.random.default_rng(seed)
    x_TH = random_rows(rng, shape, dtype)
    token_ids_T, slot_ids_T, table_DV = random_ids(rng, shape)

    outputs, report = _dispatch(operator, shape, x_TH, token_ids_T, slot_ids_T, table_DV)

    counts_RG, positions_T = reference.send_order(token_ids_T, slot_ids_T, table_DV, shape.experts, shape.ranks)
    rows_TH, counts, positions, invalid, _ = outputs
    expected_TH = np.empty_like(x_TH)
    expected_TH[positions_T] = x_TH
    expect(rows_TH, expected_TH, "rows")
    expect(counts[: counts_RG.size], counts_RG.reshape(-1), "counts")
    expect(positions[: shape.tokens], positions_T, "positions")
    expect(invalid[:1], np.zeros(1, np.int32), "invalid")
    return report


def check_wrong_ids(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """Checks that rre_dispatch counts ids outside the table, never reads beyond it, and moves every row once."""
    rng = np.random.default_rng(seed)
    x_TH = random_rows(rng, shape, dtype)
    token_ids_T, slot_ids_T, table_DV = random_ids(rng, shape)
    wrong_tokens_T = rng.random(shape.tokens) < 0.1
    wrong_slots_T = rng.random(shape.tokens) < 0.1
    token_ids_T[wrong_tokens_T] = rng.choice([-1, shape.vocab_size, 2**31 - 1, -(2**31)], wrong_tokens_T.sum())
    slot_ids_T[wrong_slots_T] = rng.choice([-1, shape.slots], wrong_slots_T.sum())
    table_DV[:, 0] = shape.experts
    experts_T = table_DV[slot_ids_T.clip(0, shape.slots - 1), token_ids_T.clip(0, shape.vocab_size - 1)]
    num_wrong = np.sum(wrong_tokens_T | wrong_slots_T | (experts_T >= shape.experts))

    outputs, report = _dispatch(operator, shape, x_TH, token_ids_T, slot_ids_T, table_DV)

    expect(outputs[3][:1], np.array([num_wrong], np.int32), "wrong ids")
    expect(np.sort(outputs[2][: shape.tokens]), np.arange(shape.tokens, dtype=np.int32), "sorted positions")
    return report


def _dispatch(
    operator: Operator,
    shape: Shape,
    x_TH: np.ndarray,
    token_ids_T: np.ndarray,
    slot_ids_T: np.ndarray,
    table_DV: np.ndarray,
) -> tuple[list[np.ndarray], Report]:
    ids = padded(token_ids_T, 8), padded(slot_ids_T, 8), padded(table_DV, 16, fill=shape.experts)
    layout = np.zeros((shape.ranks, shape.experts // shape.ranks), np.int32)
    return operator(x_TH, *ids, layout, cores=shape.cores)


def check_move_rows(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """Checks rre_gather_rows or rre_scatter_rows."""
    rng = np.random.default_rng(seed)
    rows_TH = random_rows(rng, shape, dtype)
    positions_T = rng.permutation(shape.tokens).astype(np.int32)

    (moved_TH,), report = operator(rows_TH, padded(positions_T, 8), cores=shape.cores)

    if operator.kernel == "rre_scatter_rows":
        expected_TH = np.empty_like(rows_TH)
        expected_TH[positions_T] = rows_TH
    else:
        expected_TH = rows_TH[positions_T]
    expect(moved_TH, expected_TH, "moved rows")
    return report


def dispatch_least_bytes(shape: Shape, item_bytes: int, seed: int) -> int:
    """Returns the bytes of rows read and written, ids and T table entries read, and positions and counts written."""
    table_bytes = 2 * shape.tokens
    counts_bytes = 4 * shape.slots * shape.experts
    return 2 * item_bytes * shape.tokens * shape.hidden + 3 * 4 * shape.tokens + table_bytes + counts_bytes


def move_least_bytes(shape: Shape, item_bytes: int, seed: int) -> int:
    """Returns the bytes of rows read and written, and of positions read."""
    return 2 * item_bytes * shape.tokens * shape.hidden + 4 * shape.tokens


def dispatch_launches(shape: Shape) -> float:
    """Returns a launch for each token's id and one for its row; the counts of eight groups move four times."""
    return 2.25 * shape.tokens + shape.slots * shape.experts / 2


def move_launches(shape: Shape) -> float:
    """Returns a launch for each row on the scattered side; on the other side neighbouring rows move together."""
    return 1.2 * shape.tokens


def dispatch_cann_cost(shape: Shape, item_bytes: int) -> tuple[int, int]:
    """Returns the cost of CANN's moe_init_routing_v2 after an operation that looks the experts up.

    It sorts pairs of expert and index (8 bytes each, in and out of global memory once in the sort and once in the
    merge, read again for the counts), and loads and stores row by row.
    """
    ids = 4 * shape.tokens
    return 2 * item_bytes * shape.tokens * shape.hidden + 4 * ids + 5 * 2 * ids, 2 * shape.tokens


def move_cann_cost(shape: Shape, item_bytes: int) -> tuple[int, int]:
    """Returns the cost of CANN's backward operators, which move as many rows as ours, one by one."""
    return 2 * item_bytes * shape.tokens * shape.hidden + 4 * shape.tokens, 2 * shape.tokens


DISPATCH_MUTANTS = {
    HEADER: {
        "sum over cores one core too far": ("from[kLead - kInts], out", "from[kLead], out"),
        "running sum stops early": ("shift < cores_; shift *= 2", "shift < cores_; shift *= 4"),
        "total of the last core but one": ("kLead + size - kInts", "kLead + size - 2 * kInts"),
        "zeros before the slice forgotten": ("Duplicate(from, 0, kLead);", ""),
        "slices of other cores too": ("slice = core_; slice", "slice = 0; slice"),
        "start of the next group": (
            "next.GetValue(kInts + group) + start);\n      start += totals.GetValue(group);",
            "next.GetValue(kInts + group) + (start += totals.GetValue(group)));",
        ),
        "position not advanced": ("next.SetValue(group, place + 1)", "next.SetValue(group, place)"),
        "histogram not cleared": ("Duplicate(histogram, 0, columns_);", ""),
        "histogram row of another core": (
            "DataCopy(histograms_[static_cast<uint64_t>(core_) * columns_], histogram",
            "DataCopy(histograms_[0], histogram",
        ),
        "granule of another entry": ("table_[entry / kEntries * kEntries]", "table_[entry / kEntries]"),
        "ids not kept inside the table": ("Min(given_token, vocab_size_ - 1)", "given_token"),
        "experts not kept inside the group": ("expert = Min(named, experts_ - 1)", "expert = named"),
        "slot before rank": (
            "(expert / experts_of_rank_ * slots_ + slot) * experts_of_rank_ + expert % experts_of_rank_",
            "slot * experts_ + expert",
        ),
    },
    ENTRY: {
        "kernel of type AIV_ONLY": ("KERNEL_TYPE_MIX_AIV_1_0", "KERNEL_TYPE_AIV_ONLY"),
        "kernel type on every chip": ("#if !RRE_DAV_C100", "#if 1"),
    },
    SHARED_HEADER: {
        "no share for the last step": ("begin + each + (core < more ? 1 : 0)", "begin + each"),
        "hardware SyncAll everywhere": ("kHardwareSync = !RRE_DAV_C100", "kHardwareSync = true"),
    },
    SHARED_LIMITS: {"too few zeros before the slices": ("kMaxShift = kMaxCores / 2", "kMaxShift = 4")},
    SHARED_HOST: {"batches as large as the buffer": ("each / row_bytes, kMaxBatch)", "each / row_bytes, 1024)")},
    HOST: {
        "too small a workspace": ("cores * columns * sizeof(int32_t)", "columns * sizeof(int32_t)"),
        "barrier not zeroed": (".InitValue(0)", ""),
        "no atomic, so nothing is zeroed": ("SetNeedAtomic(true)", "SetNeedAtomic(false)"),
        "more cores than the chip has": ("context->SetBlockDim(cores)", "context->SetBlockDim(64)"),
        "cores do not start together": ("context->SetScheduleMode(1)", "context->SetScheduleMode(0)"),
    },
}

MOVE_MUTANTS = {
    MOVE_HEADER: {
        "share not in granules": ("share_ = ShareOfCore(padded, kInts)", "share_ = ShareOfCore(padded, 1)"),
        "share of all cores": ("share_ = ShareOfCore(padded, kInts)", "share_ = {0, padded}"),
        "padding moved too": ("real = Min(count, tokens_ - first)", "real = count"),
        "gather instead of scatter": ("if (scatter)", "if (!scatter)"),
        "short output": ("moved), words)", "moved), words - 8)"),
        "too long an output": ("moved), words)", "moved), words + 8)"),
        "odd DMA": (
            "DataCopy(places, positions_[first], count)",
            "DataCopy(places, positions_[first], real)",
        ),
    },
    SHARED_HEADER: {
        "tile one row too wide": ("batch * tile_words * sizeof(int32_t)", "tile_words * sizeof(int32_t)"),
        "buffers larger than the chip's": ("queue_, kBuffers, batch", "queue_, 8, batch"),
        "last column tile whole": ("width = Min(tile_words_, row_words_ - column)", "width = tile_words_"),
        "column of a row forgotten": ("row * row_words_ + column", "row * row_words_"),
    },
}

DISPATCH_TIGHT_MUTANTS = {
    HOST: {
        "histogram": ("2 * columns * sizeof(int32_t)", "columns * sizeof(int32_t)"),
        "slices": ("2 * (rre_host::kMaxShift + cores)", "(rre_host::kMaxShift + cores)"),
        "counters of SyncAll": ("cores * rre_host::kGranule +", ""),
        "table entries": ("(3 * sizeof(int32_t) + rre_host::kGranule)", "3 * sizeof(int32_t)"),
        "one array of ids": ("3 * sizeof(int32_t)", "2 * sizeof(int32_t)"),
    },
}

MOVE_TIGHT_MUTANTS = {
    SHARED_HEADER: {
        "tile size differs from the kernel's": (
            "using rre_limits::kTileTokens;",
            "constexpr uint32_t kTileTokens = 512;",
        )
    },
    SHARED_HOST: {"the library's share": ("ub_bytes -= kUbOfLibrary;", "")},
    MOVE_HOST: {
        "positions of a tile": (
            "platform.ub_bytes - rre_host::kTileTokens * sizeof(int32_t)",
            "platform.ub_bytes",
        ),
    },
}

KERNELS = (
    Kernel(
        "rre_dispatch",
        checks=(check_dispatch, check_wrong_ids),
        least_bytes=dispatch_least_bytes,
        most_launches=dispatch_launches,
        cann_cost=dispatch_cann_cost,
        sources=(HEADER, ENTRY),
        mutants=DISPATCH_MUTANTS,
        tight_mutants=DISPATCH_TIGHT_MUTANTS,
    ),
    Kernel(
        "rre_gather_rows",
        checks=(check_move_rows,),
        least_bytes=move_least_bytes,
        most_launches=move_launches,
        cann_cost=move_cann_cost,
    ),
    Kernel(
        "rre_scatter_rows",
        checks=(check_move_rows,),
        least_bytes=move_least_bytes,
        most_launches=move_launches,
        cann_cost=move_cann_cost,
        sources=(MOVE_HEADER, SHARED_HEADER),
        mutants=MOVE_MUTANTS,
        tight_mutants=MOVE_TIGHT_MUTANTS,
    ),
)
