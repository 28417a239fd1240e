"""StepPlanner: which rank trains on which micro-batch, and what ranks send each other, checked by counting tokens."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.config import Config, DataConfig
from mindpangu.data.batch import Batch
from mindpangu.data.route_plan import capacity_for, plan_exchange, plan_routes
from mindpangu.data.step_planner import StepPlanner, align_slots
from mindpangu.errors import RoutingError
from mindpangu.parallel.mesh import Mesh

VOCAB = 30
LAYERS = 2


class Domain:
    def __init__(self, name, num_experts):
        self.name = name
        self.num_experts = num_experts


class Table:
    """The part of a routing table that plans use."""

    num_layers = LAYERS

    def __init__(self, rng, domains):
        self.arrays = {
            domain.name: rng.integers(0, domain.num_experts, (LAYERS, VOCAB)).astype(np.uint16) for domain in domains
        }

    def vocab_size(self, name):
        return VOCAB

    def array(self, layer, name):
        return self.arrays[name][layer]

    def stacked(self, names):
        return np.stack([self.arrays[name] for name in names], 1).astype(np.int32)


def batch(rng, domain_of_slot, slots_of_samples, length=5, sample_id=0):
    tokens_BS = rng.integers(0, VOCAB, (len(slots_of_samples), length)).astype(np.int32)
    ids = np.full((len(slots_of_samples), 2), sample_id, np.int64)
    mask = np.ones(tokens_BS.shape, np.float32)
    slots = np.array(slots_of_samples, np.int32)
    return Batch(tokens_BS, tokens_BS, tokens_BS, mask, tuple(domain_of_slot), slots, ids)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3))
def test_an_exchange_plan_counts_every_token(seed, ranks, local_experts):
    rng = np.random.default_rng(seed)
    group = ranks * local_experts
    domains = [Domain("a", group), Domain("b", int(rng.integers(1, group + 1)))]
    table = Table(rng, domains)
    batches = [batch(rng, (0, 1), sorted(rng.integers(0, 2, 3).tolist())) for _ in range(ranks)]
    plans = [plan_routes(each.tokens_BS, (0, 1), each.slot_of_sample_B, domains, table) for each in batches]
    rows = np.zeros((LAYERS, ranks, ranks, 2, local_experts), int)  # layer, from, to, slot, expert of the rank
    for source, each in enumerate(batches):
        for tokens_S, slot in zip(each.tokens_BS, each.slot_of_sample_B, strict=True):
            for token in tokens_S:
                for layer in range(LAYERS):
                    expert = int(table.array(layer, domains[slot].name)[token])
                    rows[layer, source, expert // local_experts, slot, expert % local_experts] += 1

    for rank in range(ranks):
        plan = plan_exchange(plans, rank)

        np.testing.assert_array_equal(plan.exchange.send_LR, rows[:, rank].sum((2, 3)))
        np.testing.assert_array_equal(plan.exchange.receive_LR, rows[:, :, rank].sum((2, 3)))
        np.testing.assert_array_equal(plan.exchange.arriving_LRG, rows[:, :, rank].reshape(LAYERS, ranks, -1))
        np.testing.assert_array_equal(plan.counts_LDA, rows[:, :, rank].sum(1))
        assert plan.exchange.capacity >= rows.sum((1, 3, 4)).max()
        assert plan.exchange.capacity == plan_exchange(plans, 0).exchange.capacity
        assert plan.exchange.imbalance == pytest.approx(plan_exchange(plans, 0).exchange.imbalance)


def test_there_are_at_most_four_capacities_and_the_largest_holds_everything():
    tokens = 100
    ranks = 16

    sizes = {capacity_for(arriving, tokens, ranks) for arriving in range(tokens * ranks + 1)}

    assert sorted(sizes) == [125, 200, 400, 1600]
    assert {capacity_for(arriving, 100, 2) for arriving in range(201)} == {125, 200}


@pytest.mark.parametrize(
    "mesh",
    [Mesh(), Mesh(4), Mesh(4, 2, 2), Mesh(4, 1, 4, 2), Mesh(8, 1, 4, 4), Mesh(8, 2, 8, 2)],
    ids=lambda mesh: mesh.describe(),
)
def test_all_ranks_together_train_on_every_micro_batch_once(mesh):
    rng = np.random.default_rng(0)
    domains = [Domain(name, 4) for name in "abcd"]
    table = Table(rng, domains)
    count = 16
    # as the loader orders them: the micro-batches of a group of domains are adjacent
    micro_batches = [
        batch(rng, (index // (count // mesh.sub_groups) % 4,), [0, 0], sample_id=index) for index in range(count)
    ]

    seen = []
    for rank in range(mesh.size):
        planner = StepPlanner(domains, table, mesh, mesh.coordinates(rank), num_slots=1)
        step = planner.plan_step(micro_batches)
        assert step.num_targets == sum(each.loss_mask_BS.sum() for each in micro_batches)
        assert len(step.batches) == len(step.plans) == count // mesh.data
        assert all(len(each.replicas) == mesh.replicas - 1 for each in step.plans)
        assert all((each.exchange is not None) == (mesh.members > 1) for each in step.plans)
        if mesh.coordinates(rank).tensor == 0:
            seen += [int(each.sample_ids_B2[0, 0]) for each in step.batches]
    assert sorted(seen) == list(range(count))


MESHES = [Mesh(4), Mesh(4, 2, 2), Mesh(4, 1, 4, 2), Mesh(8, 1, 4, 2), Mesh(6, 2, 3)]


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: mesh.describe())
def test_every_rank_plans_its_own_tokens_and_knows_what_its_replicas_activate(mesh):
    """Every row of a step is counted by hand, at the rank that holds its expert."""
    rng = np.random.default_rng(1)
    domains = [Domain(name, 12) for name in "abcd"]
    table = Table(rng, domains)
    turns = 2
    count = turns * mesh.data
    micro_batches = [
        batch(rng, (index // (count // mesh.sub_groups),), [0, 0], sample_id=index) for index in range(count)
    ]
    batch_of = {mesh.owner(index, count): each for index, each in enumerate(micro_batches)}

    for rank in range(mesh.size):
        own = mesh.coordinates(rank)
        step = StepPlanner(domains, table, mesh, own, num_slots=1).plan_step(micro_batches)

        for turn, (own_batch, plan) in enumerate(zip(step.batches, step.plans, strict=True)):
            assert own_batch.sample_ids_B2[0, 0] == batch_of[mesh.data_index(own), turn].sample_ids_B2[0, 0]
            others = [replica for replica in range(mesh.replicas) if replica != own.replica]
            for replica, other_plan in zip((own.replica, *others), (plan, *plan.replicas), strict=True):
                senders = [
                    batch_of[mesh.data_index(replace(own, replica=replica, member=member)), turn]
                    for member in range(mesh.members)
                ]
                rows_LRRA = np.stack([rows_by_expert(table, domains, sender) for sender in senders], 1)
                rows_LRRA = rows_LRRA.reshape(LAYERS, mesh.members, mesh.members, -1)  # from, to, expert of that rank
                np.testing.assert_array_equal(other_plan.counts_LDA[:, 0], rows_LRRA[:, :, own.member].sum(1))
                if mesh.members > 1:
                    rows_LRR = rows_LRRA.sum(3)
                    np.testing.assert_array_equal(other_plan.exchange.send_LR, rows_LRR[:, own.member])
                    np.testing.assert_array_equal(other_plan.exchange.receive_LR, rows_LRR[:, :, own.member])


def rows_by_expert(table, domains, each):
    """Returns int [L, E], the tokens of a batch of one domain by expert."""
    (domain,) = each.domain_of_slot
    experts_LT = [table.array(layer, domains[domain].name)[each.tokens_BS.reshape(-1)] for layer in range(LAYERS)]
    return np.stack([np.bincount(experts_T, minlength=12) for experts_T in experts_LT])


@pytest.mark.parametrize(
    ("mesh", "groups", "slots"),
    [
        (Mesh(), 1, 2),  # one process has the micro-batches of all groups, one after another
        (Mesh(), 2, 2),
        (Mesh(2), 2, 2),
        (Mesh(2, 1, 2), 1, 2),
        (Mesh(2, 1, 2), 2, 4),  # two ranks exchange the tokens of both groups
        (Mesh(4, 1, 4, 2), 2, 2),
        (Mesh(4, 1, 4, 2), 4, 4),
        (Mesh(2, 1, 2, 2), 2, 2),  # a rank by itself in its sub-group
    ],
)
def test_ranks_that_exchange_tokens_have_slots_for_all_their_groups(mesh, groups, slots):
    config = SimpleNamespace(data=SimpleNamespace(domain_groups=groups, domains_per_step=2))

    planner = StepPlanner.from_config(config, [], None, mesh, mesh.coordinates(0))

    assert planner.num_slots == slots


def test_a_batch_can_be_routed_as_another_domain():
    rng = np.random.default_rng(0)
    domains = [Domain("a", 4), Domain("b", 4)]
    planner = StepPlanner(domains, Table(rng, domains), Mesh(), Mesh().coordinates(0), 1)
    each = batch(rng, (0,), [0, 0])

    own = planner.plan(each)
    other = planner.plan(each, (1,))

    assert (own.domain_of_slot, other.domain_of_slot) == ((0,), (1,))
    assert not np.array_equal(own.counts_LDA, other.counts_LDA)


def test_ranks_that_exchange_tokens_have_the_same_domain_in_a_slot():
    rng = np.random.default_rng(0)
    one = batch(rng, (0, 2, 2), [0, 1, 1])
    other = batch(rng, (1, 2, 2), [0, 0, 1])

    aligned = align_slots([one, other], 3)

    assert [each.domain_of_slot for each in aligned] == [(0, 1, 2)] * 2
    assert [each.slot_of_sample_B.tolist() for each in aligned] == [[0, 2, 2], [1, 1, 2]]
    assert align_slots([one, one], 3) == [one, one]
    assert align_slots([batch(rng, (2,), [0, 0])], 3)[0].domain_of_slot == (2, 2, 2)
    assert align_slots([one, batch(rng, (0,), [0, 0])], 3)[0].domain_of_slot == (0, 2, 2)
    assert [each.domain_of_slot for each in align_slots([one, other], 5)] == [(0, 1, 2, 2, 2)] * 2  # ascending
    with pytest.raises(RoutingError, match="have 4 domains, but the step has 3 slots"):
        align_slots([one, batch(rng, (1, 3, 3), [0, 1, 1])], 3)


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ([0, -1], r"the slots of 2 samples are \[0, -1\]; allowed: one per sample, each below 2"),
        ([0, 2], r"are \[0, 2\]"),
        ([0], "the slots of 2 samples"),
        ([0, 0, 1], "the slots of 2 samples"),
    ],
)
def test_slots_that_do_not_fit_the_samples_are_refused(slots, words):
    domains = [Domain("a", 2), Domain("b", 2)]
    table = Table(np.random.default_rng(0), domains)

    with pytest.raises(RoutingError, match=words):
        plan_routes(np.zeros((2, 5), np.int32), (0, 1), np.array(slots, np.int32), domains, table)


@pytest.mark.parametrize(
    ("mesh", "num_slots"),
    [
        (Mesh(data=1), 3),
        (Mesh(data=4), 3),
        (Mesh(data=4, expert=4, sub_groups=4), 3),  # a rank exchanges with nobody
        (Mesh(data=4, expert=4, sub_groups=2), 6),
        (Mesh(data=4, expert=4), 12),
    ],
    ids=lambda value: value.describe() if isinstance(value, Mesh) else str(value),
)
def test_a_configuration_gives_ranks_that_exchange_tokens_slots_for_all_their_groups(mesh, num_slots):
    config = Config(data=DataConfig(domains_per_step=3, domain_groups=4))

    planner = StepPlanner.from_config(config, [], None, mesh, mesh.coordinates(0))

    assert planner.num_slots == num_slots
