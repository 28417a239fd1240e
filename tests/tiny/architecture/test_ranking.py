"""Ranks and Spearman's correlation against hand-computed ones, with ties, and the bootstrap interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.tiny.architecture.ranking import RESAMPLES, Correlation, mean_ranks, spearman


def test_ranks_match_hand_computed_ones():
    assert mean_ranks([30, 10, 20]).tolist() == [3, 1, 2]
    assert mean_ranks([5, 1, 5, 5, 0]).tolist() == [4, 2, 4, 4, 1]
    assert mean_ranks([[2, 1], [7, 7]]).tolist() == [[2, 1], [1.5, 1.5]]


def test_spearman_matches_hand_computed_values():
    # IQ against hours of television: Σ d² = 194, n = 10, so 1 - 6 · 194 / (10 · 99)
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(iq, hours) == pytest.approx(1 - 6 * 194 / 990)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: Σ ab = 4.5, Σ a² = 4.5, Σ b² = 5
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


values = st.lists(st.integers(-50, 50), min_size=3, max_size=20)


@given(values, st.randoms(use_true_random=False))
def test_spearman_without_ties_matches_the_formula_of_squared_differences(numbers, rng):
    x_J = np.array([*sorted(set(numbers)), 99, 100], np.float64)
    y_J = np.array(rng.sample(range(1000), len(x_J)), np.float64)
    n = len(x_J)
    differences = x_J.argsort().argsort() - y_J.argsort().argsort()

    assert spearman(x_J, y_J) == pytest.approx(1 - 6 * (differences**2).sum() / (n * (n * n - 1)))


@given(values, values)
def test_spearman_with_ties_matches_the_correlation_of_ranks(x, y):
    def ranks_of(numbers):
        ranks = {}
        for rank, value in enumerate(sorted(numbers), start=1):
            ranks.setdefault(value, []).append(rank)
        return [np.mean(ranks[value]) for value in numbers]

    size = min(len(x), len(y))
    x = x[:size]
    y = y[:size]

    assert mean_ranks(x).tolist() == ranks_of(x)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(np.corrcoef(ranks_of(x), ranks_of(y))[0, 1])
        assert spearman(x, y) == pytest.approx(spearman(np.exp(np.array(x) / 10), y))  # only the order matters


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 100))
def test_the_interval_matches_points_resampled_one_by_one(seed):
    rng = np.random.default_rng(seed)
    x_J, y_J = rng.normal(size=(2, 15))
    draws = np.random.default_rng(3).integers(0, 15, (RESAMPLES, 15))
    one_by_one = [float(spearman(x_J[draw], y_J[draw])) for draw in draws]

    correlation = Correlation.between(x_J, y_J, seed=3)

    expected = tuple(np.percentile(one_by_one, (2.5, 97.5)))
    assert (correlation.lowest, correlation.highest) == pytest.approx(expected)
    assert correlation.lowest <= correlation.rho <= correlation.highest


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x_draws, noise_RN = rng.normal(size=(2, 60, 20))
    y_draws = 0.5 * x_draws + math.sqrt(0.75) * noise_RN
    truth = 6 / math.pi * math.asin(0.5 / 2)  # Spearman's ρ of normal variables with Pearson's ρ of 0.5

    correlations = [Correlation.between(x_J, y_J) for x_J, y_J in zip(x_draws, y_draws, strict=True)]

    covered = np.mean([each.lowest <= truth <= each.highest for each in correlations])
    assert 0.85 <= covered < 1


def test_undefined_correlations_and_intervals_are_reported_as_such():
    assert str(Correlation.between([1] * 6, range(6))) == "not defined"
    assert Correlation.between([1] * 6, range(6)).to_dict() == {"rho": None, "lowest": None, "highest": None}

    few = Correlation.between([1, 2, 3], [1, 2, 3])
    assert str(few) == "+1.00 (few points)"
    assert few.to_dict() == {"rho": pytest.approx(1), "lowest": None, "highest": None}

    assert str(Correlation.between(range(9), range(0, -9, -1))) == "-1.00 (-1.00 … -1.00)"
