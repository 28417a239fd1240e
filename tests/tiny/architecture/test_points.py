"""Points at a parameter budget against brute force, the random sample, and impossible budgets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mindpangu.config import check, load_config
from mindpangu.errors import ConfigError
from mindpangu.model.parameter_count import count_parameters
from mindpangu.tiny.architecture.points import Range, Space, enumerate_points, sample_points

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
DENSE = {"model.rre_layers": "0", "model.vocab_size": "100"}
PANGU_PI = DENSE | {
    "model.activation": "swiglu",
    "model.biases": "false",
    "model.series_terms": "2",
    "model.shortcut_reduction": "4",
    "model.query_layer": "false",
    "model.position": "rope",
}
ROUTED = {"model.rre_layers": "2", "model.vocab_size": "100", "domains.experts_per_domain": "2"}


def num_parameters(config, depth, width, ffn_width):
    sized = replace(config.model, num_layers=depth, hidden_size=width, ffn_hidden_size=ffn_width)
    return count_parameters(replace(config, model=sized)).total


def by_brute_force(config, space):
    """Returns (depth, width) → the smallest distance from the budget, where it is within the tolerance."""
    distance_of = {}
    for depth in range(max(1, config.model.rre_layers), 20):
        for width in range(space.head_size, 200, space.head_size):
            if depth not in space.depth or width not in space.width:
                continue
            distances = [
                abs(num_parameters(config, depth, width, ffn_width) - space.budget)
                for ffn_width in range(8, 10 * width, 8)
                if ffn_width / width in space.expansion
            ]
            if distances and min(distances) <= space.tolerance * space.budget:
                distance_of[depth, width] = min(distances)
    return distance_of


@settings(max_examples=25, deadline=None)
@given(
    overrides=st.sampled_from([DENSE, PANGU_PI, ROUTED]),
    budget=st.integers(20_000, 600_000),
    depths=st.tuples(st.integers(1, 6), st.integers(0, 5)),
    widths=st.tuples(st.integers(8, 60), st.integers(0, 60)),
    expansions=st.tuples(st.floats(0.5, 3), st.floats(0, 3)),
    head_size=st.sampled_from([8, 12]),
    tolerance=st.sampled_from([0.0, 0.01, 0.1]),
)
def test_points_match_brute_force(overrides, budget, depths, widths, expansions, head_size, tolerance):
    config = load_config(None, overrides)
    ranges = [Range(lowest, lowest + more) for lowest, more in (depths, widths, expansions)]
    space = Space(budget, *ranges, head_size, tolerance)
    expected = by_brute_force(config, space)
    if not expected:
        with pytest.raises(ConfigError):
            enumerate_points(config, space)
        return

    points = enumerate_points(config, space)

    assert {(point.depth, point.width): abs(point.parameters - budget) for point in points} == expected
    for point in points:
        sized = point.apply(config)
        check(sized)
        assert count_parameters(sized).total == point.parameters
        assert point.ffn_width % 8 == 0
        assert point.expansion in space.expansion
        assert point.num_heads * head_size == point.width


def test_the_published_model_is_a_point_in_the_papers_ranges():
    config = load_config(RECIPES / "pangu_pi_1b_pro.yaml")
    space = Space(count_parameters(config).total, Range(9, 40), Range(1280, 2560), Range(1, 4), head_size=128)

    points = {(point.depth, point.width): point for point in enumerate_points(config, space)}

    assert points[21, 1792].apply(config) == config


@pytest.fixture(scope="module")
def points():
    config = load_config(None, DENSE)
    return enumerate_points(config, Space(300_000, Range(2, 12), Range(16, 200), Range(1, 4), head_size=8))


@settings(max_examples=20, deadline=None)
@given(num_points=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_sample_is_distinct_repeatable_and_balanced_over_the_depths(points, num_points, seed):
    assume(num_points <= len(points))

    sample = sample_points(points, num_points, seed)

    assert len(set(sample)) == num_points
    assert set(sample) <= set(points)
    assert sample == sample_points(points, num_points, seed)
    available = Counter(point.depth for point in points)
    drawn = Counter(point.depth for point in sample)
    most = max(drawn.values())
    assert all(drawn[depth] >= min(most - 1, available[depth]) for depth in available)


def test_samples_of_different_seeds_differ_and_widths_are_drawn_uniformly(points):
    samples = [sample_points(points, 10, seed) for seed in range(200)]

    assert len({tuple(sample) for sample in samples}) == 200
    ((depth, _),) = Counter(point.depth for point in points).most_common(1)
    widths = {point.width for point in points if point.depth == depth}
    drawn = Counter(point.width for sample in samples for point in sample if point.depth == depth)
    expected = drawn.total() / len(widths)
    assert len(widths) > 2
    assert all(abs(drawn[width] - expected) < 5 * expected**0.5 for width in widths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 10**9}, "--budget 1,000,000,000 is out of reach: --depth 2:4 --width 16:64 --expansion 1:4"),
        ({"budget": 10}, r"\(\d.*K\) to .* parameters. Choose a budget in between, or widen a range"),
        ({"width": Range(9, 15)}, "contain no architecture: the width is a multiple of --head-size 8"),
        (
            {"budget": 50_001, "tolerance": 0.0},
            r"no point of .* meets --budget 50,001 .* the nearest has 49,872 parameters",
        ),
    ],
)
def test_the_message_of_an_impossible_budget_names_what_is_possible(changes, message):
    space = Space(50_000, Range(2, 4), Range(16, 64), Range(1, 4), head_size=8)

    with pytest.raises(ConfigError, match=message):
        enumerate_points(load_config(None, DENSE), replace(space, **changes))


def test_a_range_is_two_numbers_or_one():
    assert Range.parse("--depth", "2:8") == Range(2, 8)
    assert Range.parse("--depth", "4") == Range(4, 4)
    for text in ("8:2", "a:b", "1:2:3", "0:3", "", "1:inf", "nan", "1:1e7"):
        with pytest.raises(ConfigError, match=r"--depth is .*; allowed: LOWEST:HIGHEST"):
            Range.parse("--depth", text)


def test_samples_larger_than_the_space_are_refused(points):
    for num_points in (0, len(points) + 1):
        with pytest.raises(ConfigError, match=f"these ranges have {len(points)}. Ask for 1 to {len(points)}"):
            sample_points(points, num_points, 0)


def test_impossible_spaces_name_the_option():
    space = {"budget": 10**5, "depth": Range(2, 4), "width": Range(16, 64), "expansion": Range(1, 4)}
    with pytest.raises(ConfigError, match=r"--tolerance is 1.5"):
        Space(**space, head_size=8, tolerance=1.5)
    with pytest.raises(ConfigError, match="--head-size is 0"):
        Space(**space, head_size=0)

    odd_heads = load_config(None, PANGU_PI)
    with pytest.raises(ConfigError, match=r"model\.position is rope"):
        enumerate_points(odd_heads, Space(**space, head_size=9))


def test_ranges_that_would_take_hours_to_search_are_refused():
    space = Space(10**9, Range(1, 10**6), Range(64, 10**6), Range(1, 4), head_size=64)

    with pytest.raises(ConfigError, match=r"have 15,625,000,000 pairs of depth and width; allowed: at most 100,000"):
        enumerate_points(load_config(None, DENSE), space)
