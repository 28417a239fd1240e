"""The share of a rank: a run of each group of experts, and a shard of each expert."""

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.errors import ConfigError
from mindpangu.model.initialization import initial_expert
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.mesh import Mesh

MESH = Mesh(data=8, tensor=2, expert=4, sub_groups=2)
GROUPS = ((0, 2), (1, 3))


def test_every_expert_is_on_the_ranks_of_one_run_of_its_sub_group():
    holders = {}
    for rank in range(MESH.size):
        share = ExpertShare.from_mesh(MESH, MESH.coordinates(rank), GROUPS)
        for domain in range(4):
            for expert in share.experts(6) if share.has(domain) else ():
                holders.setdefault((domain, expert), []).append(rank)

    assert len(holders) == 4 * 6
    for (domain, expert), ranks in holders.items():
        coordinates = [MESH.coordinates(rank) for rank in ranks]
        assert {each.sub_group for each in coordinates} == {domain % 2}
        assert {each.member for each in coordinates} == {expert // 3}
        assert {(each.replica, each.tensor) for each in coordinates} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_rank_without_sub_groups_holds_all_domains():
    share = ExpertShare.from_mesh(Mesh(2, 1, 2), Mesh(2, 1, 2).coordinates(1), ((0, 1, 2),))

    assert all(share.has(domain) for domain in range(3))
    assert share.experts(4) == range(2, 4)
    assert ExpertShare().experts(5) == range(5)
    assert ExpertShare().tensor_slice("up", (8, 4)).is_whole


def test_a_group_that_members_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"the largest group has 5 experts .* which 2 ranks of a sub-group"):
        ExpertShare(members=2).experts(5)


@pytest.mark.parametrize("activation", ["fast_gelu", "swiglu"])
def test_shards_of_an_expert_compute_parts_that_add_up(activation):
    """The inner columns of the first matrices belong to the same rows of the last, so partial results are summed."""
    config = load_config(None, {"model.hidden_size": "8", "model.activation": activation})
    expert = initial_expert(config, 0, "zh", 0)
    rng = np.random.default_rng(0)
    expert = {name: rng.standard_normal(tensor.shape).astype(np.float32) for name, tensor in expert.items()}
    x_TH = rng.standard_normal((3, 8)).astype(np.float32)

    def network(tensors):
        inner = np.maximum(x_TH @ tensors["up"] + tensors["up_bias"], 0)
        if "gate" in tensors:
            inner = inner * (x_TH @ tensors["gate"] + tensors["gate_bias"])
        return inner @ tensors["down"]

    shards = []
    for rank in range(4):
        share = ExpertShare(tensor=rank, tensors=4)
        shards.append({name: share.tensor_slice(name, tensor.shape).of(tensor) for name, tensor in expert.items()})

    np.testing.assert_allclose(sum(map(network, shards)), network(expert), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate([shard["down_bias"] for shard in shards]), expert["down_bias"])
    assert shards[0]["down"].shape == (config.model.ffn_hidden_size // 4, 8)
