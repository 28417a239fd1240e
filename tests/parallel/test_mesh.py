"""The mesh: coordinates, groups, the owner of each micro-batch, and HCCL's rule for groups on 910A."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import Config, DataConfig, ModelConfig
from mindpangu.config.schema import ParallelismConfig
from mindpangu.errors import ConfigError
from mindpangu.parallel.mesh import Mesh, broken_rule_of_910a

SIGMA = Mesh(data=64, tensor=8, expert=64, sub_groups=4)
KINDS = ("tensor_group", "data_group", "exchange_group", "node_exchange_group", "expert_replicas")


@st.composite
def meshes(draw):
    sub_groups, members, replicas, tensor = (draw(st.integers(1, 4)) for _ in range(4))
    expert = sub_groups * members
    return Mesh(data=replicas * expert, tensor=tensor, expert=expert, sub_groups=sub_groups)


@given(meshes())
def test_every_rank_has_coordinates_of_its_own(mesh):
    coordinates = [mesh.coordinates(rank) for rank in range(mesh.size)]

    assert len(set(coordinates)) == mesh.size
    assert [mesh.rank(each) for each in coordinates] == list(range(mesh.size))


@given(meshes(), st.sampled_from(KINDS))
def test_groups_of_a_kind_divide_the_ranks(mesh, kind):
    groups = mesh.groups(kind)

    assert sorted(rank for group in groups for rank in group) == list(range(mesh.size))
    for rank in range(mesh.size):
        assert rank in getattr(mesh, kind)(rank)


@given(meshes())
def test_the_ranks_of_a_group_share_all_other_coordinates(mesh):
    for rank in range(mesh.size):
        own = mesh.coordinates(rank)

        for other in mesh.exchange_group(rank):
            assert replace(mesh.coordinates(other), member=own.member) == own
        for other in mesh.expert_replicas(rank):
            assert replace(mesh.coordinates(other), replica=own.replica) == own
        for other in mesh.data_group(rank):
            assert mesh.coordinates(other).tensor == own.tensor

        assert len(mesh.exchange_group(rank)) == mesh.members
        assert len(mesh.expert_replicas(rank)) == mesh.replicas


@given(meshes(), st.integers(1, 3))
def test_every_micro_batch_has_one_owner_of_its_sub_group(mesh, turns):
    count = turns * mesh.data
    owners = [mesh.owner(index, count) for index in range(count)]

    assert sorted(owners) == [(data, turn) for data in range(mesh.data) for turn in range(turns)]
    for index, (data, _) in enumerate(owners):
        assert mesh.coordinates(data * mesh.tensor).sub_group == index // (count // mesh.sub_groups)


def test_micro_batches_go_to_the_members_of_a_replica_one_after_another():
    """8 ranks in 2 sub-groups of 2 members, twice: micro-batches 0 to 7 are of the first sub-group."""
    mesh = Mesh(data=8, expert=4, sub_groups=2)

    owners = [mesh.owner(index, 16) for index in range(16)]

    assert owners[:4] == [(0, 0), (1, 0), (4, 0), (5, 0)]
    assert owners[4:8] == [(0, 1), (1, 1), (4, 1), (5, 1)]
    assert owners[8:12] == [(2, 0), (3, 0), (6, 0), (7, 0)]


def test_sigmas_mesh_has_the_groups_of_its_paper():
    """A rank talks to 15 others instead of 63; an exchange group has one card of each of 16 nodes."""
    assert SIGMA.size == 512
    assert (SIGMA.members, SIGMA.replicas) == (16, 1)
    assert SIGMA.tensor_group(13) == tuple(range(8, 16))

    exchange = SIGMA.exchange_group(13)
    assert len(exchange) - 1 == 15
    assert exchange == tuple(node * 8 + 5 for node in range(16))
    assert len(SIGMA.groups("exchange_group")) == 32
    assert SIGMA.node_exchange_group(13) == tuple(range(128))
    assert SIGMA.describe() == "512 = data 64 × tensor 8; experts on 64 ranks in 4 sub-groups"


@pytest.mark.parametrize(
    ("rre_layers", "expert_parallel", "mesh"),
    [
        (1, 4, Mesh(data=8, tensor=2, expert=4, sub_groups=2)),
        (1, 2, Mesh(data=8, tensor=2, expert=2, sub_groups=2)),
        (1, 1, Mesh(data=8, tensor=2, expert=1, sub_groups=1)),  # every rank holds all experts
        (0, 4, Mesh(data=8, tensor=2, expert=1, sub_groups=1)),  # a dense model has no experts to divide
    ],
)
def test_the_mesh_of_a_configuration(rre_layers, expert_parallel, mesh):
    config = Config(
        model=ModelConfig(rre_layers=rre_layers),
        data=DataConfig(domain_groups=2),
        parallelism=ParallelismConfig(data_parallel=8, tensor_parallel=2, expert_parallel=expert_parallel),
    )

    assert Mesh.from_config(config) == mesh


def test_a_mesh_describes_only_what_it_divides():
    assert Mesh(data=4, tensor=2).describe() == "8 = data 4 × tensor 2"
    assert Mesh(data=4, tensor=2, expert=4).describe() == "8 = data 4 × tensor 2; experts on 4 ranks"
    assert Mesh(data=2, expert=2, sub_groups=2).describe() == (
        "2 = data 2 × tensor 1; experts on 2 ranks in 2 sub-groups"
    )


@pytest.mark.parametrize(
    ("sizes", "words"), [((4, 1, 3, 1), "expert 3 does not divide data 4"), ((4, 1, 4, 3), "sub_")]
)
def test_axes_that_do_not_divide_are_refused(sizes, words):
    with pytest.raises(ConfigError, match=words):
        Mesh(*sizes)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (range(4), None),
        (range(8), None),
        (range(16), None),
        ((0, 3), None),
        ((9,), None),
        ((0, 1, 2, 3, 8, 9, 10, 11), None),
        ((3, 4), "both clusters"),
        ((0, 1, 2), "a part of a cluster"),
        ((0, 8), "a part of a cluster"),
        ((0, 1, 2, 3, 12, 13, 14, 15), "other cards"),
    ],
)
def test_a_group_that_breaks_the_rule_of_910a_is_named(ranks, words):
    broken = broken_rule_of_910a(tuple(ranks))
    assert broken is None if words is None else words in broken


def test_sigmas_exchange_groups_break_the_rule_and_its_nodes_keep_it():
    assert "a part of a cluster" in broken_rule_of_910a(SIGMA.exchange_group(0))
    assert broken_rule_of_910a(SIGMA.node_exchange_group(0)) is None
    assert broken_rule_of_910a(SIGMA.tensor_group(0)) is None
