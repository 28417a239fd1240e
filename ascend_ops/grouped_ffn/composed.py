"""grouped_ffn of built-in MindSpore ops, with static shapes for ragged groups.

Every expert owns one block of C rows. What does not fit goes to X shared overflow blocks, which gather the weights
of the expert they serve. With T rows in all, an expert of n rows needs ⌈n/C⌉ − 1 ≤ (n − 1)/C overflow blocks, so
X = ⌈T/C⌉ − 1 is enough for every distribution, all rows on one expert included: nothing is dropped, and no shape
depends on the data.
"""

import mindspore as ms
from mindspore import nn, ops


def overflow_blocks(num_rows: int, block_rows: int) -> int:
    """X, the overflow blocks that suffice for any distribution of num_rows rows over experts."""
    return -(-num_rows // block_rows) - 1


def fast_gelu(u):
    """u · sigmoid(1.702 u), PanGu-α's activation (ops.fast_gelu, in two kernels that are fast on the CPU too)."""
    return u * ops.sigmoid(1.702 * u)


class MoveToBlocks(nn.Cell):
    """Rows into blocks and back: `index` names the row of each of P block places (R stands for none), `place` the place
    of each row (P stands for none: padding)."""

    def construct(self, rows_RH, index_P, place_R):
        return ops.gather(_with_zero_row(rows_RH), index_P, 0)

    def bprop(self, rows_RH, index_P, place_R, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), place_R, 0), zeros(index_P), zeros(place_R)


class MoveFromBlocks(nn.Cell):
    """The transpose of MoveToBlocks."""

    def construct(self, places_PH, index_P, place_R):
        return ops.gather(_with_zero_row(places_PH), place_R, 0)

    def bprop(self, places_PH, index_P, place_R, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), index_P, 0), zeros(index_P), zeros(place_R)


class GatherExperts(nn.Cell):
    """Weights of the experts that overflow blocks serve; the gradient is one matmul instead of a scatter-add."""

    def construct(self, weight_E, owner_X, owner_EX):
        return ops.gather(weight_E, owner_X, 0)

    def bprop(self, weight_E, owner_X, owner_EX, out, dout):
        zeros = ops.ZerosLike()
        flat = ops.matmul(owner_EX, dout.reshape((dout.shape[0], -1)))
        return flat.reshape(weight_E.shape), zeros(owner_X), zeros(owner_EX)


move_to_blocks, move_from_blocks, gather_experts = MoveToBlocks(), MoveFromBlocks(), GatherExperts()


def _with_zero_row(rows):
    return ops.concat((rows, ops.ZerosLike()(rows[:1])), 0)


def grouped_ffn(rows_TH, counts_G, slabs, block_rows=0):
    """See `ascend_ops.grouped_ffn`."""
    num_slots, num_experts = len(slabs) // 4, slabs[0].shape[0]
    rows_in_slot = rows_TH.shape[0] // num_slots
    block_rows = block_rows or -(-rows_in_slot // num_experts)
    outputs = ()
    for slot in range(num_slots):
        rows_RH = rows_TH[slot * rows_in_slot : (slot + 1) * rows_in_slot]
        counts_E = counts_G[slot * num_experts : (slot + 1) * num_experts]
        outputs += (_slot_ffn(rows_RH, counts_E, slabs[4 * slot : 4 * slot + 4], block_rows),)
    return outputs[0] if num_slots == 1 else ops.concat(outputs, 0)


def _slot_ffn(rows_RH, counts_E, slab, block_rows):
    """The ragged groups of one slot: R rows, E experts."""
    num_rows, hidden = rows_RH.shape
    num_experts, num_overflow = counts_E.shape[0], overflow_blocks(num_rows, block_rows)
    index_P, place_R, owner_X = _block_layout(counts_E, num_rows, block_rows, num_overflow)
    blocks = move_to_blocks(rows_RH, index_P, place_R).reshape((-1, block_rows, hidden))
    out = _block_ffn(blocks[:num_experts], *slab)
    if num_overflow > 0:
        owner_EX = ops.cast(ops.expand_dims(ops.arange(num_experts), 1) == owner_X, rows_RH.dtype)
        gathered = ()
        for weight in slab:
            gathered += (gather_experts(weight, owner_X, owner_EX),)
        out = ops.concat((out, _block_ffn(blocks[num_experts:], *gathered)), 0)
    return move_from_blocks(out.reshape((-1, hidden)), index_P, place_R)


def _block_ffn(blocks, up, up_bias, down, down_bias):
    u = ops.bmm(blocks, up) + ops.expand_dims(up_bias, 1)
    return ops.bmm(fast_gelu(u), down) + ops.expand_dims(down_bias, 1)


def _block_layout(counts_E, num_rows, block_rows, num_overflow):
    """Where rows stand in the blocks.

    Returns:
        index_P: int32 [(E+X)·C], the row at each place of the blocks, num_rows where there is none.
        place_R: int32 [R], the place of each row, (E+X)·C for padding.
        owner_X: int32 [X], the expert that each overflow block serves (the last one for unused blocks).
    """
    num_experts = counts_E.shape[0]
    ends_E = ops.cumsum(counts_E, 0)
    starts_E = ends_E - counts_E
    extra_E = ops.relu(ops.floor_div(counts_E + (block_rows - 1), block_rows) - 1)
    extra_ends_E = ops.cumsum(extra_E, 0)
    extra_starts_E = extra_ends_E - extra_E

    owner_B = _range(num_experts)
    part_B = ops.ZerosLike()(owner_B)
    owner_X = owner_B[:0]
    if num_overflow > 0:
        blocks_X = _range(num_overflow)
        owner_X = ops.minimum(_count_reached(blocks_X, extra_ends_E), num_experts - 1)
        # an unused block gets a part beyond its owner's rows, so that all its places are empty
        part_X = blocks_X - ops.gather(extra_starts_E, owner_X, 0) + 1
        owner_B, part_B = ops.concat((owner_B, owner_X), 0), ops.concat((part_B, part_X), 0)
    offset_BC = ops.expand_dims(part_B * block_rows, 1) + _range(block_rows)
    used_BC = offset_BC < ops.expand_dims(ops.gather(counts_E, owner_B, 0), 1)
    index_BC = ops.expand_dims(ops.gather(starts_E, owner_B, 0), 1) + offset_BC
    index_P = ops.select(used_BC, index_BC, ops.ones_like(index_BC) * num_rows).reshape((-1,))

    rows_R = _range(num_rows)
    reached_R = _count_reached(rows_R, ends_E)
    expert_R = ops.minimum(reached_R, num_experts - 1)
    offset_R = rows_R - ops.gather(starts_E, expert_R, 0)
    overflow_R = num_experts + ops.gather(extra_starts_E, expert_R, 0) + ops.floor_div(offset_R, block_rows) - 1
    block_R = ops.select(offset_R < block_rows, expert_R, overflow_R)
    place_R = block_R * block_rows + ops.floor_mod(offset_R, block_rows)
    nowhere_R = ops.ones_like(place_R) * ((num_experts + num_overflow) * block_rows)
    return index_P, ops.select(reached_R < num_experts, place_R, nowhere_R), owner_X


def _range(size):
    return ops.cast(ops.arange(size), ms.int32)


def _count_reached(values_N, ends_E):
    """int32 [N]: how many of the ascending ends each value has reached, which is the group it falls into."""
    reached_NE = ops.cast(ops.expand_dims(values_N, 1) >= ends_E, ms.int32)
    return ops.cast(reached_NE.sum(1), ms.int32)
