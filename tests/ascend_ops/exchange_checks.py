"""Checks that the processes of test_grouped_all_to_all.py run together, for any backend.

Every rank makes the inputs of all ranks from one seed, and compares its own results with the reference, bit by bit.
"""

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all, reference
from ascend_ops.grouped_ffn import grouped_ffn
from ascend_ops.grouped_ffn import reference as ffn_reference
from ascend_ops.rre_combine import rre_combine
from ascend_ops.rre_dispatch import reference as rre_reference
from ascend_ops.rre_regroup import rre_regroup

ROWS = 12
CAPACITY = 50
HIDDEN = 5


def differentiate(function, graph, wanted=0):
    gradient = ms.value_and_grad(function, wanted, has_aux=True)

    def both(*inputs):
        return gradient(*inputs)

    return ms.jit(both) if graph else both


def random_counts(rng, size, pattern):
    """Returns [R, R]; no rank sends more than ROWS."""
    if pattern == "nobody to 0":
        counts_RR = rng.integers(0, ROWS // size + 1, (size, size))
        counts_RR[0] = counts_RR[:, 0] = 0
    elif pattern == "all to the last":
        counts_RR = np.zeros((size, size), np.int64)
        counts_RR[:, -1] = ROWS
    else:
        counts_RR = rng.multinomial(ROWS, np.ones(size) / size, size)
        counts_RR[:, 0] -= rng.integers(0, counts_RR[:, 0] + 1)  # some rows stay behind
    return counts_RR.astype(np.int32)


def exchange_check(group, graph, dtype, patterns):
    def weighted(rows_QH, send_R, receive_R, dout_CH):
        rows_CH, _ = grouped_all_to_all(rows_QH, send_R, receive_R, CAPACITY, group, first_order())
        return (rows_CH * dout_CH).sum(), rows_CH

    rng = np.random.default_rng(5)
    me = group.rank

    step = differentiate(weighted, graph)

    for pattern in patterns:
        counts_RR = random_counts(rng, group.size, pattern)
        rows = [rng.standard_normal((ROWS, HIDDEN)).astype(dtype) for _ in range(group.size)]
        dout = [rng.standard_normal((CAPACITY, HIDDEN)).astype(dtype) for _ in range(group.size)]
        inputs = (rows[me], counts_RR[me], counts_RR[:, me].copy(), dout[me])
        (_, rows_CH), drows_QH = step(*map(Tensor, inputs))
        expected = reference.grouped_all_to_all(rows, counts_RR, CAPACITY)[me]
        np.testing.assert_array_equal(rows_CH.asnumpy(), expected, pattern)
        expected = reference.grouped_all_to_all_backward(dout, counts_RR, [ROWS] * group.size)[me]
        np.testing.assert_array_equal(drows_QH.asnumpy(), expected, pattern)


def two_exchanges_check(first, second, graph, repeats):
    """Two independent exchanges with a linear loss: only the order token keeps the ranks in the same order."""
    rng = np.random.default_rng(6)
    results = []
    for group in (first, second):
        counts_RR = random_counts(rng, group.size, "ragged")
        rows = [rng.standard_normal((ROWS, HIDDEN)).astype(np.float32) for _ in range(group.size)]
        dout = [rng.standard_normal((CAPACITY, HIDDEN)).astype(np.float32) for _ in range(group.size)]
        results.append((counts_RR, rows, dout))

    def weighted(rows_a, send_a, receive_a, dout_a, rows_b, send_b, receive_b, dout_b):
        out_a, order = grouped_all_to_all(rows_a, send_a, receive_a, CAPACITY, first, first_order())
        out_b, order = grouped_all_to_all(rows_b, send_b, receive_b, CAPACITY, second, order)
        return (out_a * dout_a).sum() + (out_b * dout_b).sum(), out_a, out_b

    inputs = []
    for group, (counts_RR, rows, dout) in zip((first, second), results, strict=True):
        me = group.rank
        inputs += map(Tensor, (rows[me], counts_RR[me], counts_RR[:, me].copy(), dout[me]))
    step = differentiate(weighted, graph, (0, 4))

    for _ in range(repeats):
        (_, *outputs), gradients = step(*inputs)

    for group, out, gradient, case in zip((first, second), outputs, gradients, results, strict=True):
        counts_RR, rows, dout = case
        me = group.rank
        np.testing.assert_array_equal(out.asnumpy(), reference.grouped_all_to_all(rows, counts_RR, CAPACITY)[me])
        expected = reference.grouped_all_to_all_backward(dout, counts_RR, [ROWS] * group.size)[me]
        np.testing.assert_array_equal(gradient.asnumpy(), expected)


class Doubled(nn.Cell):
    """A cell that keeps its group."""

    def __init__(self, group):
        super().__init__()
        self.group = group

    def construct(self, rows_QH, send_R, receive_R):
        rows_CH, order = grouped_all_to_all(rows_QH * 2, send_R, receive_R, CAPACITY, self.group, first_order())
        return rows_CH, order


def many_rounds_check(group, rounds):
    """Calls one compiled function with different counts every time; ranks are late at random."""
    me = group.rank
    step = ms.jit(Doubled(group).construct)
    rng = np.random.default_rng(7)
    rng_of_rank = np.random.default_rng(me)

    patterns = ("ragged", "nobody to 0", "all to the last")

    for round_index in range(rounds):
        counts_RR = random_counts(rng, group.size, patterns[round_index % 3])
        rows = rng.integers(-99, 99, (group.size, ROWS, HIDDEN)).astype(np.float32)
        if rng_of_rank.random() < 0.01:
            time.sleep(0.005)
        rows_CH, _ = step(Tensor(rows[me]), Tensor(counts_RR[me]), Tensor(counts_RR[:, me].copy()))
        expected = reference.grouped_all_to_all(rows * 2, counts_RR, CAPACITY)[me]
        np.testing.assert_array_equal(rows_CH.asnumpy(), expected)


def dispatch_case(size, tokens=24, slots=2, experts=8, vocab=17):
    rng = np.random.default_rng(8)
    return {
        "x": [rng.standard_normal((tokens, HIDDEN)).astype(np.float32) for _ in range(size)],
        "token_ids": [rng.integers(0, vocab, tokens).astype(np.int32) for _ in range(size)],
        "slot_ids": [rng.integers(0, slots, tokens).astype(np.int32) for _ in range(size)],
        "table": rng.integers(0, experts, (slots, vocab)).astype(np.int32),
        "dout": [rng.standard_normal((tokens, HIDDEN)).astype(np.float32) for _ in range(size)],
        "experts": experts,
        "tokens": tokens,
    }


def counts_of_chunk(case, size, chunk, chunks):
    """Returns [R, R], the plan of one chunk."""
    length = case["tokens"] // chunks
    part = slice(chunk * length, (chunk + 1) * length)
    return np.stack(
        [
            rre_reference.send_order(ids[part], slots[part], case["table"], case["experts"], size)[0].sum(1)
            for ids, slots in zip(case["token_ids"], case["slot_ids"], strict=True)
        ]
    ).astype(np.int32)


def layer(group, chunks, graph, case):
    """Runs dispatch → a function of each row → return → combine.

    Returns:
        [output, gradient], [rows, counts, positions], each per chunk, and the group's statistics.
    """
    me = group.rank
    size = group.size
    experts = case["experts"]
    tokens = case["tokens"]
    length = tokens // chunks
    capacity = size * tokens
    plans = [counts_of_chunk(case, size, k, chunks) for k in range(chunks)]
    send = np.stack([plan[me] for plan in plans])
    receive = np.stack([plan[:, me] for plan in plans])
    if chunks == 1:
        send = send[0]
        receive = receive[0]

    def weighted(x_TH, ids_T, slots_T, table_DV, send_counts, receive_counts, dout_TH):
        rows, counts, positions, invalid, order = dispatch_all_to_all(
            x_TH, ids_T, slots_T, table_DV, experts, send_counts, receive_counts, capacity, group, first_order(), chunks
        )
        if chunks == 1:
            rows = (rows,)
            counts = (counts,)
            positions = (positions,)
        outputs = ()
        for k in range(chunks):
            send_R = send_counts if chunks == 1 else send_counts[k]
            receive_R = receive_counts if chunks == 1 else receive_counts[k]
            done_CH = rows[k] * rows[k] + 1
            back_TH, order = grouped_all_to_all(done_CH, receive_R, send_R, length, group, order)
            outputs += (rre_combine(back_TH, positions[k], x_TH[k * length : (k + 1) * length]),)
        out_TH = outputs[0] if chunks == 1 else ops.concat(outputs, 0)
        return (out_TH * dout_TH).sum(), out_TH, rows, counts, positions, invalid

    inputs = (case["x"][me], case["token_ids"][me], case["slot_ids"][me], case["table"], send, receive)
    before = group.statistics()
    (_, out, rows, counts, positions, invalid), dx = differentiate(weighted, graph)(
        *map(Tensor, inputs), Tensor(case["dout"][me])
    )
    outputs = [out.asnumpy(), dx.asnumpy()], [[part.asnumpy() for part in each] for each in (rows, counts, positions)]
    assert invalid.asnumpy() == [0]
    return *outputs, {name: value - before[name] for name, value in group.statistics().items()}


def dispatch_check(group, graph, chunkings):
    case = dispatch_case(group.size)
    me = group.rank
    capacity = group.size * case["tokens"]
    (out, dx), ((rows,), (counts,), (positions,)), statistics = layer(group, 1, graph, case)

    expected = reference.dispatch_all_to_all(
        case["x"], case["token_ids"], case["slot_ids"], case["table"], case["experts"], capacity
    )

    for each, wanted in zip((rows, counts, positions), expected, strict=True):
        np.testing.assert_array_equal(each, wanted[me])
    x = case["x"][me]
    dout = case["dout"][me]
    np.testing.assert_array_equal(out, x + (x * x + 1))
    np.testing.assert_allclose(dx, dout + 2 * x * dout, rtol=1e-5, atol=1e-6)
    for chunks in chunkings:
        (chunked_out, chunked_dx), parts, chunked = layer(group, chunks, graph, case)
        np.testing.assert_array_equal(chunked_out, out)
        np.testing.assert_array_equal(chunked_dx, dx)
        assert chunked["exchanges"] == chunks * statistics["exchanges"]
        if statistics["exchanges"]:  # the composed form does not count
            assert {**chunked, "exchanges": 0} == {**statistics, "exchanges": 0}
        np.testing.assert_array_equal(sum(parts[1]), counts)
    return statistics


def expert_parallel_check(group, graph):
    """An RRE layer with its experts spread over the ranks equals one process with all tokens and all experts.

    Compares every rank's output and every expert's gradient, with two domain slots of different sizes and one unused.
    """
    slots = 3
    size = group.size
    me = group.rank
    case = dispatch_case(size, slots=slots)
    for ids in case["slot_ids"]:
        ids[ids == 1] = 2
    experts = case["experts"]
    local = experts // size
    capacity = size * case["tokens"]
    rng = np.random.default_rng(9)
    inner = 7
    shapes = ((experts, HIDDEN, inner), (experts, inner), (experts, inner, HIDDEN), (experts, HIDDEN))
    slabs = [(0.5 * rng.standard_normal(shape)).astype(np.float32) for shape in shapes * slots]
    plans = [
        rre_reference.send_order(ids, slots, case["table"], experts, size)[0]
        for ids, slots in zip(case["token_ids"], case["slot_ids"], strict=True)
    ]
    received_RG = np.stack([plan[me] for plan in plans]).astype(np.int32)
    send_R = plans[me].sum(1).astype(np.int32)
    receive_R = received_RG.sum(1).astype(np.int32)

    def weighted(x_TH, ids_T, slots_T, table_DV, send_R, receive_R, received_RG, dout_TH, *slabs):
        rows_CH, _, positions_T, _, order = dispatch_all_to_all(
            x_TH, ids_T, slots_T, table_DV, experts, send_R, receive_R, capacity, group, first_order()
        )
        counts_G = ops.cast(received_RG.sum(0), ms.int32)
        done_CH = grouped_ffn(rre_regroup(rows_CH, received_RG), counts_G, slabs)
        done_CH = rre_regroup(done_CH, ops.transpose(received_RG, (1, 0)))
        back_TH, order = grouped_all_to_all(done_CH, receive_R, send_R, case["tokens"], group, order)
        out_TH = rre_combine(back_TH, positions_T, x_TH)
        return (out_TH * dout_TH).sum(), out_TH

    own_slabs = [slab[me * local : (me + 1) * local] for slab in slabs]
    inputs = (case["x"][me], case["token_ids"][me], case["slot_ids"][me], case["table"], send_R, receive_R)
    inputs = map(Tensor, (*inputs, received_RG, case["dout"][me], *own_slabs))
    (_, out_TH), (dx_TH, *dslabs) = differentiate(weighted, graph, (0, *range(8, 8 + 4 * slots)))(*inputs)

    x_all, dout_all = (np.concatenate(case[name]).astype(np.float64) for name in ("x", "dout"))
    wide = [slab.astype(np.float64) for slab in slabs]
    ids = (np.concatenate(case["token_ids"]), np.concatenate(case["slot_ids"]))
    rows_all, counts_G, positions_all = rre_reference.rre_dispatch(x_all, *ids, case["table"], experts)
    expected = x_all + ffn_reference.grouped_ffn(rows_all, counts_G, wide)[positions_all]
    dsorted_all = np.empty_like(dout_all)
    dsorted_all[positions_all] = dout_all
    drows_all, dwide = ffn_reference.grouped_ffn_backward(dsorted_all, rows_all, counts_G, wide)

    own = slice(me * case["tokens"], (me + 1) * case["tokens"])

    np.testing.assert_allclose(out_TH.asnumpy(), expected[own], atol=2e-6)
    np.testing.assert_allclose(dx_TH.asnumpy(), (dout_all + drows_all[positions_all])[own], atol=1e-5)
    for gradient, wanted in zip(dslabs, dwide, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), wanted[me * local : (me + 1) * local], atol=2e-5)
