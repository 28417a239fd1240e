"""New tables of a domain with more or fewer experts, and merged experts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.checkpoint import CheckpointReader
from mindpangu.lifecycle.blueprint import Blueprint, NewExpert
from mindpangu.lifecycle.resize import merge_experts, resize, resize_group
from mindpangu.model.initialization import expert_shapes


@st.composite
def groups(draw):
    old = draw(st.integers(1, 9))
    new = draw(st.integers(1, 9))
    tokens = draw(st.integers(max(old, new), 60))
    experts_V = np.array(draw(st.lists(st.integers(0, old - 1), min_size=tokens, max_size=tokens)), np.uint16)
    counts_V = np.array(draw(st.lists(st.integers(0, 50), min_size=tokens, max_size=tokens)), np.int64)
    return experts_V, old, new, counts_V


@given(groups())
def test_tokens_stay_with_the_successor_of_their_expert(case):
    experts_V, old, new, counts_V = case

    resized = resize_group(experts_V, old, new, counts_V)

    assert resized.experts_V.dtype == np.uint16
    assert len(resized.sources) == new
    assert resized.experts_V.max() < new
    for token, expert in enumerate(resized.experts_V):
        assert experts_V[token] in resized.sources[expert]
    everything = [expert for sources in resized.sources for expert in sources]
    if new >= old:
        assert all(len(sources) == 1 for sources in resized.sources)  # the function stays
        assert set(everything) == set(range(old))
    else:
        assert sorted(everything) == list(range(old))  # each old expert is in exactly one new one


@given(groups())
def test_splitting_never_makes_the_busiest_busier(case):
    experts_V, old, new, counts_V = case

    resized = resize_group(experts_V, old, max(old, new), counts_V)

    load = [np.bincount(table, counts_V, 10).max() for table in (experts_V, resized.experts_V)]
    assert load[1] <= load[0]


def test_growing_halves_the_busiest_and_keeps_the_indices_of_the_others():
    experts_V = np.array([0, 0, 0, 0, 1, 1, 2], np.uint16)
    counts_V = np.array([9, 7, 5, 3, 2, 2, 1])

    resized = resize_group(experts_V, 3, 4, counts_V)

    assert resized.experts_V.tolist() == [0, 3, 0, 3, 1, 1, 2]
    assert resized.sources == ((0,), (1,), (2,), (0,))


def test_shrinking_merges_the_idlest():
    experts_V = np.array([0, 0, 1, 2, 3], np.uint16)

    resized = resize_group(experts_V, 4, 2, np.array([9, 9, 1, 2, 7]))

    assert resized.sources == ((0,), (1, 2, 3))
    assert resized.experts_V.tolist() == [0, 0, 1, 1, 1]


def test_merged_experts_are_the_mean_by_tokens():
    experts = [
        NewExpert(lambda: {"up": np.full((1, 2), 1, np.float32)}, 3),
        NewExpert(lambda: {"up": np.full((1, 2), 5, np.float32)}, 9),
    ]

    both = merge_experts(experts, np.array([3, 1]), {"up": (1, 2)})
    unused = merge_experts(experts, np.array([0, 0]), {"up": (1, 2)})

    assert both.step_count == 9
    np.testing.assert_array_equal(both.make()["up"], [[2, 2]])
    np.testing.assert_array_equal(unused.make()["up"], [[3, 3]])


def test_a_group_can_be_resized_twice_without_a_file_in_between(trained):
    """Blueprints compose: merged experts of a checkpoint can be merged again."""
    reader = CheckpointReader(trained)
    zh = Blueprint.from_checkpoint(reader).contents["zh"]
    shapes = expert_shapes(reader.config())

    blueprint = resize(resize(Blueprint.from_checkpoint(reader), "zh", 2), "zh", 1)

    expert = blueprint.contents["zh"].expert(0, 0)
    experts_V = zh.table.experts_LV[0]
    shares = np.bincount(experts_V, minlength=3) / len(experts_V)
    old = [zh.expert(0, index).open(shapes) for index in range(3)]
    expected = sum(share * each.read("adam_v.down") for share, each in zip(shares, old, strict=True))
    np.testing.assert_allclose(expert.make()["adam_v.down"], expected, rtol=1e-5)
    assert expert.step_count == max(each.step_count for each in old)


def test_counts_decide_what_is_split():
    experts_V = np.array([0, 0, 1, 1], np.uint16)
    assert resize_group(experts_V, 2, 3, np.array([1, 1, 5, 5])).sources[2] == (1,)
    assert resize_group(experts_V, 2, 3, np.array([5, 5, 1, 1])).sources[2] == (0,)
    with pytest.raises(ValueError, match="empty"):
        resize_group(np.array([0], np.uint16), 1, 2, np.array([1]))
