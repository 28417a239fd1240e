"""Route plans: counts and imbalance by hand, ids at the edge of a table, and the exchange that compiling uses."""

import numpy as np
import pytest

from mindpangu.data.route_plan import capacities, capacity_for, own_exchange, plan_exchange, plan_routes
from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.routing import DomainTable, RoutingTable

LARGE = Domain("large", "monolingual", (), 4)
SMALL = Domain("small", "monolingual", (), 2)
DOMAINS = [LARGE, SMALL]
# token t of the large domain goes to expert t % 4, in the second layer always to expert 3
TABLE = RoutingTable(
    [
        DomainTable("large", 4, "random", np.array([[0, 1, 2, 3, 0, 1, 2, 3], [3] * 8], np.uint16)),
        DomainTable("small", 2, "random", np.array([[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]], np.uint16)),
    ]
)


def plan_of(tokens, domain_of_slot=(0,), slots=None):
    slots = np.zeros(len(tokens), np.int32) if slots is None else np.array(slots, np.int32)
    return plan_routes(np.array(tokens, np.int32), domain_of_slot, slots, DOMAINS, TABLE)


def test_tokens_are_counted_by_layer_slot_and_expert():
    plan = plan_of([[0, 4, 1], [0, 1, 2], [7, 7, 7]], (0, 1), [0, 1, 0])

    assert plan.counts_LDA.tolist() == [[[2, 1, 0, 3], [2, 1, 0, 0]], [[0, 0, 0, 6], [1, 2, 0, 0]]]
    assert plan.experts_D.tolist() == [4, 2]
    assert plan.tables_LDV.shape == (2, 2, 8)


def test_a_slot_without_samples_counts_nothing():
    plan = plan_of([[0, 1]], (1, 1), [0])
    assert not plan.counts_LDA[:, 1].any()


def test_imbalance_is_the_busiest_expert_over_the_mean_of_all_experts_of_the_domain():
    """Large: 3 of 4 tokens on one of 4 experts in layer 0, and all in layer 1. Small: 3 of 4 on one of 2 experts."""
    large = plan_of([[0, 0, 0, 1]], (0, 1), [0])
    small = plan_of([[0, 0, 0, 1]], (1, 0), [0])
    second_slot = plan_of([[0, 0, 0, 1]], (0, 1), [1])
    both = plan_of([[0, 0, 0, 1], [0, 0, 0, 1]], (0, 1), [0, 1])

    assert large.imbalance() == (3 / 1 + 4 / 1) / 2
    assert small.imbalance() == second_slot.imbalance() == (3 / 2 + 3 / 2) / 2
    assert both.imbalance() == (3 + 4 + 1.5 + 1.5) / 4


def test_a_dense_model_has_no_imbalance():
    plan = plan_routes(np.zeros((1, 3), np.int32), (0,), np.zeros(1, np.int32), DOMAINS, None)

    assert plan.imbalance() == 1.0
    assert plan.counts_LDA.shape == (0, 1, 4)
    assert plan_exchange([plan, plan], 1) is plan


def test_imbalance_of_an_exchange_is_that_over_the_experts_of_all_ranks():
    plans = [plan_of([[0, 0, 0, 1]]), plan_of([[2, 2, 2, 2]])]

    for rank in range(2):
        plan = plan_exchange(plans, rank)
        assert plan.imbalance() == (4 / 2 + 8 / 2) / 2
        assert plan.counts_LDA.shape == (2, 1, 2)


def test_imbalance_of_an_exchange_counts_only_the_experts_that_exist():
    plans = [plan_of([[0, 0, 0, 1]], (1,)), plan_of([[0, 0, 0, 1]], (1,))]
    assert plan_exchange(plans, 1).imbalance() == 1.5


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_id_outside_its_domains_table_is_refused(token):
    assert plan_of([[4, 0]], (1,)).counts_LDA.sum() == 4

    with pytest.raises(RoutingError, match=f"token id {token} of domain small is outside its routing table of 5"):
        plan_of([[0, token]], (0, 1), [1])
    if token > 0:
        plan_of([[0, token]], (0, 1), [0])  # the table of the other domain is longer


@pytest.mark.parametrize("slots", [[0], [0, 2], [-1, 0], [0, 0, 0]])
def test_slots_that_do_not_fit_the_samples_are_refused(slots):
    with pytest.raises(RoutingError, match=r"the slots of 2 samples are .* each below 2"):
        plan_of([[0], [0]], (0, 1), slots)


def test_capacities_hold_a_quarter_more_twice_and_four_times_the_rows_of_a_rank_and_all_rows():
    assert capacities(10, 16) == [13, 20, 40, 160]
    assert capacities(10, 4) == [13, 20, 40]
    assert capacities(10, 3) == [13, 20, 30]
    assert capacities(10, 2) == [13, 20]
    assert capacities(10, 1) == [10]
    assert [capacity_for(rows, 10, 16) for rows in (0, 13, 14, 20, 21, 40, 41, 160)] == [
        13, 13, 20, 20, 40, 40, 160, 160,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_exchange_for_compiling_sends_every_row_to_its_own_rank(size):
    """It equals the plan of ranks whose tables name only the first expert of their own."""
    tokens = 6
    slots = 2
    local_experts = 4 // size
    zeros = np.zeros((1, tokens), np.int32)
    plans = []
    for rank in range(size):
        experts_LV = np.full((3, 1), rank * local_experts, np.uint16)
        table = RoutingTable([DomainTable("large", 4, "random", experts_LV)])
        plans.append(plan_routes(zeros, (0,) * slots, np.zeros(1, np.int32), [LARGE], table))

    for rank in range(size):
        wanted = plan_exchange(plans, rank).exchange
        own = own_exchange(3, slots, local_experts, tokens, rank, size)

        for name in ("send_LR", "receive_LR", "arriving_LRG"):
            array = getattr(own, name)
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, getattr(wanted, name), err_msg=name)
        assert own.capacity <= wanted.capacity
        assert own.capacity <= min(capacities(tokens, size))
