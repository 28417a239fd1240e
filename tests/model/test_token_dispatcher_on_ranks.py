"""The all-to-all dispatcher on 4 simulated ranks: 2 that share the experts times 2 that share the matrices.

Every expert multiplies its rows by its own factor, so a row that reaches a wrong expert, returns to a wrong token, or
is counted twice changes the result. The routing is that of the plans which training uses.
"""

import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.grouped_all_to_all import reference as exchange_reference
from mindpangu.data.route_plan import plan_exchange, plan_routes
from mindpangu.domains import Domain
from mindpangu.model import token_dispatcher
from mindpangu.model.token_dispatcher import AllToAllTokenDispatcher
from mindpangu.parallel.collectives import TensorGroup
from mindpangu.routing import DomainTable, RoutingTable
from tests.parallel.simulation import SimulatedRanks, exchange_group

MEMBERS = 2
TENSORS = 2
SLOTS = 2
EXPERTS = 4
BATCH = 2
LENGTH = 5
HIDDEN = 4
VOCAB = 11
SHARES = (0.25, 0.75)
"""Part of an expert's result that each rank of a tensor group computes."""


@pytest.fixture
def ranks(monkeypatch):
    """Rank = 2 · member + tensor index, as in the mesh."""
    groups = {f"tensor_{member}": (2 * member, 2 * member + 1) for member in range(MEMBERS)}
    groups |= {f"exchange_{tensor}": (tensor, 2 + tensor) for tensor in range(TENSORS)}
    return SimulatedRanks(groups).install(monkeypatch)


@pytest.fixture
def exchanges(ranks, monkeypatch):
    """Replaces both exchanges by NumPy; returns the (capacity, order) of each."""
    calls = []

    def dispatch(x_TH, tokens_T, slots_T, table_DV, experts, send_R, receive_R, capacity, group, order):
        mine = [tensor.asnumpy() for tensor in (x_TH, tokens_T, slots_T, send_R, receive_R)]
        of_rank, index = ranks.collective(group.name, "dispatch_all_to_all", mine)
        x_of_rank, tokens_of_rank, slots_of_rank, _, _ = zip(*of_rank, strict=True)
        rows, counts, positions = exchange_reference.dispatch_all_to_all(
            x_of_rank, tokens_of_rank, slots_of_rank, table_DV.asnumpy(), experts, capacity
        )
        np.testing.assert_array_equal(counts[index].sum(1), mine[3])
        np.testing.assert_array_equal([each[index].sum() for each in counts], mine[4])
        calls.append((capacity, float(order.asnumpy()[0])))
        zero = Tensor(np.zeros(1, np.int32))
        return Tensor(rows[index]), Tensor(counts[index]), Tensor(positions[index]), zero, order + 1

    def exchange(rows, send_R, receive_R, capacity, group, order):
        mine = [tensor.asnumpy() for tensor in (rows, send_R, receive_R)]
        of_rank, index = ranks.collective(group.name, "grouped_all_to_all", mine)
        rows_of_rank, send_of_rank, _ = zip(*of_rank, strict=True)
        np.testing.assert_array_equal([send_R[index] for send_R in send_of_rank], mine[2])
        calls.append((capacity, float(order.asnumpy()[0])))
        received = exchange_reference.grouped_all_to_all(rows_of_rank, np.stack(send_of_rank), capacity)
        return Tensor(received[index]), order + 1

    monkeypatch.setattr(token_dispatcher, "dispatch_all_to_all", dispatch)
    monkeypatch.setattr(token_dispatcher, "grouped_all_to_all", exchange)
    return calls


def random_problem(seed):
    rng = np.random.default_rng(seed)
    domains = [Domain(name, "monolingual", (), EXPERTS) for name in ("one", "other")]
    tables = [
        DomainTable(domain.name, EXPERTS, "random", rng.integers(0, EXPERTS, (1, VOCAB)).astype(np.uint16))
        for domain in domains
    ]
    tokens_RBS = rng.integers(0, VOCAB, (MEMBERS, BATCH, LENGTH)).astype(np.int32)
    slots_RB = np.sort(rng.integers(0, SLOTS, (MEMBERS, BATCH)), 1).astype(np.int32)
    table = RoutingTable(tables)
    plans = [
        plan_routes(tokens_BS, range(SLOTS), slots_B, domains, table)
        for tokens_BS, slots_B in zip(tokens_RBS, slots_RB, strict=True)
    ]
    factors_G = 2.0 ** rng.permutation(SLOTS * EXPERTS).astype(np.float32)
    h_RTH, x_RTH = rng.integers(-9, 9, (2, MEMBERS, BATCH * LENGTH, HIDDEN)).astype(np.float32)
    return tokens_RBS, slots_RB, plans, factors_G, h_RTH, x_RTH


@pytest.mark.parametrize("seed", range(3))
def test_every_token_returns_from_its_own_expert(ranks, exchanges, seed):
    tokens_RBS, slots_RB, plans, factors_G, h_RTH, x_RTH = random_problem(seed)
    local_experts = EXPERTS // MEMBERS

    def layer(rank):
        member, tensor = divmod(rank, TENSORS)
        plan = plan_exchange(plans, member)
        counts = (plan.exchange.send_LR[0], plan.exchange.receive_LR[0], plan.exchange.arriving_LRG[0])
        dispatcher = AllToAllTokenDispatcher(
            TensorGroup(f"tensor_{member}", tensor, TENSORS), exchange_group(f"exchange_{tensor}", MEMBERS)
        )
        tokens_T = Tensor(tokens_RBS[member].reshape(-1))
        slot_ids_T = Tensor(np.repeat(slots_RB[member], LENGTH))
        table_DV = Tensor(plan.tables_LDV[0])
        routing = (tokens_T, slot_ids_T, table_DV, local_experts, plan.exchange.capacity, tuple(map(Tensor, counts)))
        order = Tensor(np.zeros(1, np.float32))
        rows_CH, counts_G, state, order = dispatcher.dispatch(Tensor(h_RTH[member]), routing, order)

        own_factors_G = factors_G.reshape(SLOTS, MEMBERS, local_experts)[:, member].reshape(-1)
        results_CH = rows_CH.asnumpy() * SHARES[tensor]
        filled = int(counts_G.asnumpy().sum())
        results_CH[:filled] *= np.repeat(own_factors_G, counts_G.asnumpy())[:, None]
        return dispatcher.combine(Tensor(results_CH), state, Tensor(x_RTH[member]), order)

    results = ranks.run(layer)

    for rank, (result_TH, invalid, order) in enumerate(results):
        member = rank // TENSORS
        groups_T = groups_of_tokens(tokens_RBS[member], slots_RB[member], plans[member])
        expected_TH = x_RTH[member] + h_RTH[member] * factors_G[groups_T][:, None]
        np.testing.assert_array_equal(result_TH.asnumpy(), expected_TH)
        assert (int(invalid.asnumpy()[0]), float(order.asnumpy()[0])) == (0, 2)
    capacity = plan_exchange(plans, 0).exchange.capacity
    assert set(exchanges) == {(capacity, 0.0), (BATCH * LENGTH, 1.0)}


def groups_of_tokens(tokens_BS, slots_B, plan):
    """Returns slot · E + expert of each token."""
    tokens_T = tokens_BS.reshape(-1)
    slots_T = np.repeat(slots_B, tokens_BS.shape[1])
    return slots_T * EXPERTS + plan.tables_LDV[0][slots_T, tokens_T]
