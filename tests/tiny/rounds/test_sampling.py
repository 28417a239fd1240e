"""The batches of a round have the probabilities of drawing one after the other without replacement."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindpangu.errors import TrainingError
from mindpangu.tiny.rounds.sampling import draw, draw_round, draws_per_part, part_bounds

DRAWS = 40_000
CASES = {
    "a few": ([1.5, 2.0, 3.0, 2.5], 2),
    "steep": ([0.0, 4.0, 1.0, 2.0, 6.0], 3),
    "ties": ([2.0, 2.0, 3.0, 3.0, 2.0], 2),
    "all equal": ([7.0, 7.0, 7.0, 7.0], 2),
    "all": ([1.0, 2.0, 3.0], 3),
    "large": ([1e6, 1e6 + 1, 1e6 + 2, 1e6 - 1], 2),
}


def probabilities_of_sets(losses, count):
    """Every possible sample → its exact probability: the sum over the orders in which it can be drawn."""
    weights = [math.exp(loss - max(losses)) for loss in losses]
    probability_of = {}
    for order in itertools.permutations(range(len(losses)), count):
        probability, left = 1.0, math.fsum(weights)
        for index in order:
            probability *= weights[index] / left
            left -= weights[index]
        key = tuple(sorted(order))
        probability_of[key] = probability_of.get(key, 0.0) + probability
    return probability_of


def chi_square_limit(freedom):
    """What a chi-square variable exceeds once in 10,000 times (Wilson & Hilferty 1931; z = 3.719)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def sampled(losses, count, seed, times=DRAWS):
    generator, losses = np.random.default_rng(seed), np.array(losses, np.float64)
    drawn, counts = np.array([draw(losses, count, generator) for _ in range(times)]), {}
    for row in map(tuple, drawn.tolist()):
        counts[row] = counts.get(row, 0) + 1
    return counts, np.bincount(drawn.reshape(-1), minlength=len(losses)) / times


def misfit(counts, expected):
    """(chi-square of counts under the expected probabilities, degrees of freedom); rare sets are put together."""
    common = {key: probability for key, probability in expected.items() if probability * DRAWS >= 5}
    rest = 1 - sum(common.values())
    cells = [(counts.get(key, 0), probability * DRAWS) for key, probability in common.items()]
    if rest * DRAWS >= 5:
        cells.append((sum(count for key, count in counts.items() if key not in common), rest * DRAWS))
    return sum((count - wanted) ** 2 / wanted for count, wanted in cells), len(cells) - 1


@pytest.mark.parametrize("case", CASES)
def test_samples_have_their_exact_probabilities(case):
    losses, count = CASES[case]
    expected = probabilities_of_sets(losses, count)
    assert math.fsum(expected.values()) == pytest.approx(1)
    counts, included = sampled(losses, count, seed=1)
    assert counts.keys() <= expected.keys()
    found, freedom = misfit(counts, expected)
    assert freedom == 0 or found < chi_square_limit(freedom)
    for index in range(len(losses)):
        probability = sum(probability for key, probability in expected.items() if index in key)
        assert abs(included[index] - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-12


@pytest.mark.parametrize("count", [1, 2])
def test_other_distributions_are_noticed(count):
    """The measure above tells p = softmax(loss) from p ∝ loss and from uniform draws."""
    losses = [1.5, 2.0, 3.0, 2.5]
    for wrong in (np.log(losses), np.zeros(4)):
        counts, _ = sampled(wrong, count, seed=1)
        found, freedom = misfit(counts, probabilities_of_sets(losses, count))
        assert found > 3 * chi_square_limit(freedom)


def test_equal_losses_far_below_the_largest_are_drawn_evenly():
    for low in (-1e300, -1e30, -800.0):
        counts, included = sampled([low, 3.0, low, low], 2, seed=2, times=6000)
        assert included[1] == 1
        np.testing.assert_allclose(included[[0, 2, 3]], 1 / 3, atol=4.5 * math.sqrt(2 / 9 / 6000))
        assert len(counts) == 3


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.floats(-1e307, 1e307), min_size=1, max_size=60),
    parts=st.integers(1, 9),
    rate=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**40),
)
@example(losses=[1e307, -1e307, 0.0], parts=1, rate=0.5, seed=0)
def test_rate_and_parts_are_respected(losses, parts, rate, seed):
    number = len(losses)
    if parts > number:
        with pytest.raises(TrainingError, match=f"--parts is {parts}, but a round has {number} batches"):
            draw_round(np.array(losses), rate, parts, seed, 2)
        return
    bounds = part_bounds(number, parts)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, number)
    assert sizes.max() - sizes.min() <= 1
    least = np.floor(rate * bounds[1:] + 0.5) - np.floor(rate * bounds[:-1] + 0.5)
    if least.min() < 1:
        with pytest.raises(TrainingError, match="is less than one batch; raise --rate"):
            draw_round(np.array(losses), rate, parts, seed, 2)
        assert rate * sizes.min() < 1
        return
    drawn = draw_round(np.array(losses), rate, parts, seed, 2)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) > 0).all()
    assert len(drawn) == math.floor(rate * number + 0.5)
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        inside = int(((drawn >= start) & (drawn < stop)).sum())
        assert inside == draws_per_part(bounds, rate)[part]
        assert 1 <= inside <= stop - start
        assert abs(inside - rate * (stop - start)) < 1 + 1e-9
    np.testing.assert_array_equal(drawn, draw_round(np.array(losses), rate, parts, seed, 2))


def test_round_part_and_seed_have_random_numbers_of_their_own():
    losses = np.zeros(4000)
    drawn = {key: draw_round(losses, 0.5, 2, *key).tolist() for key in ((0, 2), (0, 3), (1, 2))}
    assert len({tuple(batches) for batches in drawn.values()}) == 3
    first, second = (np.array(drawn[0, 2])[:1000], np.array(drawn[0, 2])[1000:] - 2000)
    assert 400 < len(set(first.tolist()) & set(second.tolist())) < 600  # 500 ± 16 of independent halves
    both = set(drawn[0, 2]) & set(drawn[0, 3])
    assert 900 < len(both) < 1100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_named(value):
    losses = np.arange(12.0)
    losses[7] = value
    with pytest.raises(TrainingError, match=f"the loss of batch 8 of 12 is {value}"):
        draw_round(losses, 0.5, 3, 0, 2)


def test_a_rate_of_one_takes_everything_in_order():
    np.testing.assert_array_equal(draw_round(np.linspace(9, 1, 13), 1.0, 4, 0, 2), np.arange(13))
