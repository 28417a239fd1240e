"""Random calls of the AscendC kernels, and the references that they have to equal bit for bit."""

from dataclasses import dataclass

import numpy as np

from ascend_ops.emulator.compiled import BFLOAT16, Operator, Report, from_bfloat16, to_bfloat16
from ascend_ops.grouped_all_to_all import reference as exchange_reference
from ascend_ops.rre_combine import reference as combine_reference
from ascend_ops.rre_regroup import reference as regroup_reference

DTYPES = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32), "bfloat16": BFLOAT16}


@dataclass(frozen=True)
class Shape:
    """Of one call.

    Attributes:
        tokens, hidden, experts, slots, vocab_size: T, H, E, D, V.
        ranks: that the experts lie on.
        skew: 0 spreads tokens over all ids, 1 gives all of them one id; of blocks to regroup, this share of the rows
            is in one, and this share of the others is empty.
        cores: that tiling may use; 0: all.
    """

    tokens: int
    hidden: int
    experts: int = 16
    slots: int = 1
    vocab_size: int = 100
    ranks: int = 1
    skew: float = 0.0
    cores: int = 0


def padded(array: np.ndarray, multiple: int, fill: int = 0) -> np.ndarray:
    """Its last axis filled up to a multiple."""
    widths = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % multiple)]
    return np.pad(array, widths, constant_values=fill)


def random_rows(chance: np.random.Generator, shape: tuple[int, int], dtype: str) -> np.ndarray:
    values = chance.standard_normal(shape, np.float32)
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(DTYPES[dtype])


def random_ids(chance: np.random.Generator, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """token_ids_T, slot_ids_T and a uint16 table_DV."""
    token_ids_T = chance.integers(0, shape.vocab_size, shape.tokens).astype(np.int32)
    token_ids_T[chance.random(shape.tokens) < shape.skew] = shape.vocab_size - 1
    slot_ids_T = np.sort(chance.integers(0, shape.slots, shape.tokens)).astype(np.int32)
    table_DV = chance.integers(0, shape.experts, (shape.slots, shape.vocab_size)).astype(np.uint16)
    return token_ids_T, slot_ids_T, table_DV


def random_counts(chance: np.random.Generator, shape: Shape, fill: float = 0.9) -> np.ndarray:
    """int32 [ranks, slots · experts], rows of each block; `fill` of the rows at most."""
    blocks = (shape.ranks, shape.slots * shape.experts)
    weights = chance.random(blocks) * (chance.random(blocks) >= shape.skew)
    weights *= (1 - shape.skew) / max(weights.sum(), 1e-9)
    weights[0, -1] += shape.skew
    return np.floor(weights * fill * shape.tokens).astype(np.int32)


def check_dispatch(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """rre_dispatch, also in the order of dispatch_all_to_all where there are several ranks."""
    chance = np.random.default_rng(seed)
    x_TH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    token_ids_T, slot_ids_T, table_DV = random_ids(chance, shape)
    outputs, report = _dispatch(operator, shape, x_TH, token_ids_T, slot_ids_T, table_DV)
    counts_RG, positions_T = exchange_reference.send_order(
        token_ids_T, slot_ids_T, table_DV, shape.experts, shape.ranks
    )
    rows_TH, counts, positions, invalid, _ = outputs
    expected_TH = np.empty_like(x_TH)
    expected_TH[positions_T] = x_TH
    expect(rows_TH, expected_TH, "rows")
    expect(counts[: counts_RG.size], counts_RG.reshape(-1), "counts")
    expect(positions[: shape.tokens], positions_T, "positions")
    expect(invalid[:1], np.zeros(1, np.int32), "invalid")
    return report


def check_wrong_ids(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """rre_dispatch with ids outside the table: it counts them, stays inside, and places every row once."""
    chance = np.random.default_rng(seed)
    x_TH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    token_ids_T, slot_ids_T, table_DV = random_ids(chance, shape)
    wrong_tokens, wrong_slots = (chance.random(shape.tokens) < 0.1 for _ in range(2))
    token_ids_T[wrong_tokens] = chance.choice([-1, shape.vocab_size, 2**31 - 1, -(2**31)], wrong_tokens.sum())
    slot_ids_T[wrong_slots] = chance.choice([-1, shape.slots], wrong_slots.sum())
    table_DV[:, 0] = shape.experts
    inside_T = token_ids_T.clip(0, shape.vocab_size - 1), slot_ids_T.clip(0, shape.slots - 1)
    wrong = np.sum(wrong_tokens | wrong_slots | (table_DV[inside_T[1], inside_T[0]] >= shape.experts))
    outputs, report = _dispatch(operator, shape, x_TH, token_ids_T, slot_ids_T, table_DV)
    expect(outputs[3][:1], np.array([wrong], np.int32), "wrong ids")
    expect(np.sort(outputs[2][: shape.tokens]), np.arange(shape.tokens, dtype=np.int32), "sorted positions")
    return report


def _dispatch(operator, shape, x_TH, token_ids_T, slot_ids_T, table_DV):
    ids = padded(token_ids_T, 8), padded(slot_ids_T, 8), padded(table_DV, 16, fill=shape.experts)
    layout = np.zeros((shape.ranks, shape.experts // shape.ranks), np.int32)
    return operator(x_TH, *ids, layout, cores=shape.cores)


def check_move_rows(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """rre_gather_rows or rre_scatter_rows."""
    chance = np.random.default_rng(seed)
    rows_TH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    positions_T = chance.permutation(shape.tokens).astype(np.int32)
    (moved_TH,), report = operator(rows_TH, padded(positions_T, 8), cores=shape.cores)
    if operator.kernel == "rre_scatter_rows":
        expected_TH, _ = combine_reference.rre_combine_backward(rows_TH, positions_T)
    else:
        expected_TH = rows_TH[positions_T]
    expect(moved_TH, expected_TH, "moved rows")
    return report


def check_combine(operator: Operator, shape: Shape, dtype: str, seed: int) -> Report:
    """rre_combine: one addition in float32, rounded once."""
    chance = np.random.default_rng(seed)
    rows_TH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    residual_TH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    positions_T = chance.permutation(shape.tokens).astype(np.int32)
    (sum_TH,), report = operator(rows_TH, padded(positions_T, 8), residual_TH, cores=shape.cores)
    if dtype == "bfloat16":
        wide = combine_reference.rre_combine(from_bfloat16(rows_TH), positions_T, from_bfloat16(residual_TH))
        expected_TH = to_bfloat16(wide)
    else:
        expected_TH = combine_reference.rre_combine(rows_TH, positions_T, residual_TH)
    expect(sum_TH, expected_TH, "sum")
    return report


def check_regroup(operator: Operator, shape: Shape, dtype: str, seed: int, fill: float = 0.9) -> Report:
    """rre_regroup or rre_regroup_back; the counts are [ranks, slots · experts], `fill` of the rows no padding."""
    chance = np.random.default_rng(seed)
    counts_AB = random_counts(chance, shape, fill)
    rows_CH = random_rows(chance, (shape.tokens, shape.hidden), dtype)
    (out_CH,), report = operator(rows_CH, padded(counts_AB, 8), cores=shape.cores)
    back = operator.kernel == "rre_regroup_back"
    reference = regroup_reference.rre_regroup_backward if back else regroup_reference.rre_regroup
    expect(out_CH, reference(rows_CH, counts_AB), "regrouped rows")
    return report


class WrongResult(AssertionError):
    """A kernel that breaks no rule and is wrong."""


def expect(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Raises WrongResult where a bit differs."""
    bytes_got, bytes_wanted = (np.ascontiguousarray(each).view(np.uint8) for each in (got, wanted))
    if not np.array_equal(bytes_got, bytes_wanted):
        row = np.argwhere(bytes_got != bytes_wanted)[0][0]
        raise WrongResult(f"{what} differ from the reference, first in entry {row}")


CHECKS = {
    "rre_dispatch": (check_dispatch, check_wrong_ids),
    "rre_gather_rows": (check_move_rows,),
    "rre_scatter_rows": (check_move_rows,),
    "rre_combine": (check_combine,),
    "rre_regroup": (check_regroup,),
    "rre_regroup_back": (check_regroup,),
}


def check(operator: Operator, shape: Shape, dtype: str, seed: int) -> None:
    """Everything that has to hold of this kernel at one shape."""
    for each in CHECKS[operator.kernel]:
        each(operator, shape, dtype, seed)
