"""The budget of a rank: budgets add up to the whole model and match the known numbers of PanGu-Σ."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import load_config
from mindpangu.errors import ConfigError
from mindpangu.model.parameter_count import count_parameters
from mindpangu.parallel.mesh import Mesh
from mindpangu.planner.budget import Budget

RECIPES = Path(__file__).parents[2] / "recipes"


def on_mesh(config, data, tensor, expert=1, **data_keys):
    parallelism = replace(config.parallelism, data_parallel=data, tensor_parallel=tensor, expert_parallel=expert)
    return replace(config, parallelism=parallelism, data=replace(config.data, **data_keys))


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1]))
def test_the_parts_of_all_ranks_add_up_to_the_model(data, tensor, sharded):
    config = on_mesh(load_config(RECIPES / "pangu_sigma_node.yaml"), data, tensor)
    config = replace(config, parallelism=replace(config.parallelism, optimizer_sharding=bool(sharded)))
    count = count_parameters(config)
    model = config.model
    hidden = model.hidden_size
    length = model.seq_length

    budgets = [Budget.from_config(config, rank) for rank in range(data * tensor)]

    # on every rank: positions and queries, norms, biases after sums
    dense = model.num_layers - model.rre_layers
    common = 2 * length * hidden + (4 * model.num_layers + 2) * hidden + (model.num_layers + dense) * hidden
    assert count.total - count.experts == sum(each.parameters - common for each in budgets[:tensor]) + common
    moments = sum(each.moments for each in budgets)
    if sharded:  # once over all ranks, except for vectors
        assert 8 * (count.total - count.experts) <= moments < 8.2 * data * (count.total - count.experts)
        assert data == 1 or moments < 8.2 * (count.total - count.experts) * (1 + 0.05 * tensor)
    else:
        assert moments == 2 * data * sum(each.weights for each in budgets[:tensor])
    for each in budgets:
        assert each.slabs * tensor == count.experts // 4 * 2  # one of four domains, fp16


def test_a_single_rank_sends_nothing():
    assert Budget.from_config(on_mesh(load_config(RECIPES / "pangu_sigma_node.yaml"), 1, 1)).collectives == {}


def test_sigmas_exchange_moves_an_eighth_over_the_network():
    """One expert per rank and layer; rows travel in columns of 1/8, four ways, to the 15 others of the sub-group."""
    config = load_config(RECIPES / "pangu_sigma_1t.yaml")
    mesh = Mesh.from_config(config)
    tokens = 8 * 1024
    columns = 5120 // 8 * 2

    found = Budget.from_config(config)

    times, sent = found.collectives["upper_step", "AlltoAllV", "exchange"]
    assert (times, sent) == (4 * 8, 8 * 2 * (tokens + tokens * 5 // 4) * columns)
    assert len(mesh.exchange_group(0)) - 1 == 15
    assert found.slabs == 8 * (2 * 5120 * 20480 + 20480 + 5120) // 8 * 2
    assert found.collectives["push_rows", "AllGather", "data"][1] == found.moments // 2 - 4 * vectors(config)


def vectors(config):
    """Number of elements in a rank's vectors, which are not divided among ranks."""
    hidden = 5120
    inner = 20480
    layers = config.model.num_layers
    tensor = 8
    biases = layers * (3 * hidden // tensor + hidden) + (layers - 8) * (inner // tensor + hidden)
    return (4 * layers + 2) * hidden + biases


def test_without_sub_groups_every_rank_would_have_63_peers():
    config = on_mesh(load_config(RECIPES / "pangu_sigma_1t.yaml"), 64, 8, 64, domain_groups=1)
    assert len(Mesh.from_config(config).exchange_group(0)) - 1 == 63


def test_a_dense_model_is_refused():
    with pytest.raises(ConfigError, match="dense model"):
        Budget.from_config(load_config(RECIPES / "pangu_alpha_2.6b.yaml"))
