"""grouped_ffn by built-in MindSpore ops, with static shapes for ragged groups.

Every expert of every slot owns one block of C rows. Further rows go to X shared overflow blocks, which gather the
weights of the expert they serve. With T rows in total, an expert with n rows needs ⌈n/C⌉ − 1 ≤ (n − 1)/C overflow
blocks, so X = ⌈T/C⌉ − 1 suffices for every distribution, including all rows on one expert: nothing is dropped, and no
shape depends on the data. The slots' slabs are joined into one set of G = D·E experts, which copies them when D > 1.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.grouped_ffn.network import TENSORS, activate, index_of, series
from ascend_ops.linear import linear


def overflow_blocks(num_rows: int, block_rows: int) -> int:
    """Returns X, the number of overflow blocks that suffices for any distribution of num_rows rows over experts."""
    return -(-num_rows // block_rows) - 1


class MoveToBlocks(nn.Cell):
    """Copies rows into blocks.

    `index_Z` holds the row of each block position (T for none), `position_T` the block position of each row (Z for
    padding).
    """

    def construct(self, rows_TH, index_Z, position_T):
        return ops.gather(_with_zero_row(rows_TH), index_Z, 0)

    def bprop(self, rows_TH, index_Z, position_T, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), position_T, 0), zeros(index_Z), zeros(position_T)


class MoveFromBlocks(nn.Cell):
    """Copies rows back from blocks: the transpose of MoveToBlocks."""

    def construct(self, blocks_ZH, index_Z, position_T):
        return ops.gather(_with_zero_row(blocks_ZH), position_T, 0)

    def bprop(self, blocks_ZH, index_Z, position_T, out, dout):
        zeros = ops.ZerosLike()
        return ops.gather(_with_zero_row(dout), index_Z, 0), zeros(index_Z), zeros(position_T)


class GatherExperts(nn.Cell):
    """Gathers the weights of the experts that overflow blocks serve; the gradient is a matmul, not a scatter-add."""

    def construct(self, weight_G, owner_X, owner_GX):
        return ops.gather(weight_G, owner_X, 0)

    def bprop(self, weight_G, owner_X, owner_GX, out, dout):
        zeros = ops.ZerosLike()
        flat = ops.matmul(owner_GX, dout.reshape((dout.shape[0], -1)))
        return flat.reshape(weight_G.shape), zeros(owner_X), zeros(owner_GX)


move_to_blocks = MoveToBlocks()
move_from_blocks = MoveFromBlocks()
gather_experts = GatherExperts()


def _with_zero_row(rows):
    return ops.concat((rows, ops.ZerosLike()(rows[:1])), 0)


def grouped_ffn(
    rows_TH: Tensor,
    counts_G: Tensor,
    slabs: Sequence[Tensor],
    block_rows: int = 0,
    tensors: Sequence[str] = TENSORS,
    activation: str = "fast_gelu",
) -> Tensor:
    """See `ascend_ops.grouped_ffn`."""
    num_rows, hidden = rows_TH.shape
    num_groups = counts_G.shape[0]
    block_rows = block_rows or -(-num_rows // num_groups)
    num_overflow = overflow_blocks(num_rows, block_rows)
    weights = join_slabs(slabs, len(tensors))
    index_Z, position_T, owner_X = _block_layout(counts_G, num_rows, block_rows, num_overflow)
    blocks = move_to_blocks(rows_TH, index_Z, position_T).reshape((-1, block_rows, hidden))
    out = _block_ffn(blocks[:num_groups], weights, tensors, activation)
    if num_overflow > 0:
        owner_GX = ops.cast(ops.expand_dims(ops.arange(num_groups), 1) == owner_X, rows_TH.dtype)
        gathered: tuple[Tensor, ...] = ()
        for weight in weights:
            gathered += (gather_experts(weight, owner_X, owner_GX),)
        out = ops.concat((out, _block_ffn(blocks[num_groups:], gathered, tensors, activation)), 0)
    return move_from_blocks(out.reshape((-1, hidden)), index_Z, position_T)


def join_slabs(slabs: Sequence[Tensor], size: int) -> Sequence[Tensor]:
    """Joins the experts of all slots into one set: `size` tensors [G, …] from as many per slot."""
    if len(slabs) == size:
        return slabs
    weights: tuple[Tensor, ...] = ()
    for tensor in range(size):
        parts: tuple[Tensor, ...] = ()
        for slot in range(len(slabs) // size):
            parts += (slabs[size * slot + tensor],)
        weights += (ops.concat(parts, 0),)
    return weights


def _block_ffn(blocks, weights, tensors, activation):
    u = _product(blocks, weights, index_of(tensors, "up"), index_of(tensors, "up_bias"))
    inner = u
    if index_of(tensors, "gate") >= 0:
        inner = _product(blocks, weights, index_of(tensors, "gate"), index_of(tensors, "gate_bias"))
    if index_of(tensors, "scale") >= 0:
        scale = weights[index_of(tensors, "scale")]
        shift = weights[index_of(tensors, "shift")]
        scales = ()
        shifts = ()
        for i in range(scale.shape[1]):
            scales = (*scales, scale[:, i : i + 1])
            shifts = (*shifts, shift[:, i : i + 1])
        inner = series(activation, inner, scales, shifts)
    else:
        inner = activate(activation, inner)
    if index_of(tensors, "gate") >= 0:
        inner = inner * u
    return _product(inner, weights, index_of(tensors, "down"), index_of(tensors, "down_bias"))


def _product(blocks, weights, matrix, bias):
    product = ops.bmm(blocks, weights[matrix])
    return product if bias < 0 else product + ops.expand_dims(weights[bias], 1)


def feed_forward(
    rows_TH: Tensor, weights: Sequence[Tensor], tensors: Sequence[str] = TENSORS, activation: str = "fast_gelu"
) -> Tensor:
    """See `ascend_ops.grouped_ffn`."""
    neurons_TF = neurons(rows_TH, weights, tensors, activation)
    return linear(neurons_TF, weights[index_of(tensors, "down")], _bias(weights, tensors, "down_bias"))


def neurons(
    rows_TH: Tensor, weights: Sequence[Tensor], tensors: Sequence[str] = TENSORS, activation: str = "fast_gelu"
) -> Tensor:
    """Computes the input of the last matrix of `feed_forward`, [T, F]."""
    u_TF = linear(rows_TH, weights[index_of(tensors, "up")], _bias(weights, tensors, "up_bias"))
    inner_TF = u_TF
    if index_of(tensors, "gate") >= 0:
        inner_TF = linear(rows_TH, weights[index_of(tensors, "gate")], _bias(weights, tensors, "gate_bias"))
    if index_of(tensors, "scale") >= 0:
        scale = weights[index_of(tensors, "scale")]
        shift = weights[index_of(tensors, "shift")]
        scales: tuple[Tensor, ...] = ()
        shifts: tuple[Tensor, ...] = ()
        for i in range(scale.shape[0]):
            scales = (*scales, scale[i])
            shifts = (*shifts, shift[i])
        inner_TF = series(activation, inner_TF, scales, shifts)
    else:
        inner_TF = activate(activation, inner_TF)
    return inner_TF * u_TF if index_of(tensors, "gate") >= 0 else inner_TF


def _bias(weights, tensors, name):
    return weights[index_of(tensors, name)] if index_of(tensors, name) >= 0 else None


def _block_layout(counts_G, num_rows, block_rows, num_overflow):
    """Assigns rows to positions in the blocks.

    Returns:
        index_Z: int32 [(G+X)·C], the row at each block position, num_rows if there is none.
        position_T: int32 [T], the block position of each row, (G+X)·C for padding.
        owner_X: int32 [X], the expert that each overflow block serves (the last one for unused blocks).
    """
    num_groups = counts_G.shape[0]
    ends_G = ops.cumsum(counts_G, 0)
    starts_G = ends_G - counts_G
    extra_G = ops.relu(ops.floor_div(counts_G + (block_rows - 1), block_rows) - 1)
    extra_ends_G = ops.cumsum(extra_G, 0)
    extra_starts_G = extra_ends_G - extra_G

    owner_Y = _range(num_groups)
    part_Y = ops.ZerosLike()(owner_Y)
    owner_X = owner_Y[:0]
    if num_overflow > 0:
        blocks_X = _range(num_overflow)
        owner_X = ops.minimum(_count_reached(blocks_X, extra_ends_G), num_groups - 1)
        # an unused block gets a part beyond its owner's rows, so that all its positions are empty
        part_X = blocks_X - ops.gather(extra_starts_G, owner_X, 0) + 1
        owner_Y = ops.concat((owner_Y, owner_X), 0)
        part_Y = ops.concat((part_Y, part_X), 0)
    offset_YC = ops.expand_dims(part_Y * block_rows, 1) + _range(block_rows)
    used_YC = offset_YC < ops.expand_dims(ops.gather(counts_G, owner_Y, 0), 1)
    index_YC = ops.expand_dims(ops.gather(starts_G, owner_Y, 0), 1) + offset_YC
    index_Z = ops.select(used_YC, index_YC, ops.ones_like(index_YC) * num_rows).reshape((-1,))

    rows_T = _range(num_rows)
    reached_T = _count_reached(rows_T, ends_G)
    group_T = ops.minimum(reached_T, num_groups - 1)
    offset_T = rows_T - ops.gather(starts_G, group_T, 0)
    overflow_T = num_groups + ops.gather(extra_starts_G, group_T, 0) + ops.floor_div(offset_T, block_rows) - 1
    block_T = ops.select(offset_T < block_rows, group_T, overflow_T)
    position_T = block_T * block_rows + ops.floor_mod(offset_T, block_rows)
    nowhere_T = ops.ones_like(position_T) * ((num_groups + num_overflow) * block_rows)
    return index_Z, ops.select(reached_T < num_groups, position_T, nowhere_T), owner_X


def _range(size):
    return ops.cast(ops.arange(size), ms.int32)


def _count_reached(values, ends_G):
    """Returns, as int32, how many of the ascending ends each value has reached: the index of its group."""
    reached = ops.cast(ops.expand_dims(values, 1) >= ends_G, ms.int32)
    return ops.cast(reached.sum(1), ms.int32)
