"""The batches of a round have the probabilities of drawing one by one without replacement."""

import itertools
import math
from collections import Counter

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


def probabilities_of_samples(losses, count):
    """Returns every possible sample → its exact probability, summed over the orders in which it can be drawn."""
    weights = [math.exp(loss - max(losses)) for loss in losses]
    probability_of = {}
    for order in itertools.permutations(range(len(losses)), count):
        probability = 1.0
        remaining = math.fsum(weights)
        for index in order:
            probability *= weights[index] / remaining
            remaining -= weights[index]
        key = tuple(sorted(order))
        probability_of[key] = probability_of.get(key, 0.0) + probability
    return probability_of


def chi_square_limit(freedom):
    """Returns the value that a chi-square variable exceeds once in 10,000 times (Wilson & Hilferty 1931; z = 3.719)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def draw_repeatedly(losses, count, seed, times=DRAWS):
    """Returns sample → how often it was drawn, and each batch's share of the samples."""
    rng = np.random.default_rng(seed)
    losses = np.array(losses, np.float64)
    drawn = np.array([draw(losses, count, rng) for _ in range(times)])
    counts = Counter(map(tuple, drawn.tolist()))
    return counts, np.bincount(drawn.reshape(-1), minlength=len(losses)) / times


def chi_square(counts, expected):
    """Returns (chi-square of the counts under the expected probabilities, degrees of freedom), pooling rare samples."""
    common = {key: probability for key, probability in expected.items() if probability * DRAWS >= 5}
    rest = 1 - sum(common.values())
    cells = [(counts.get(key, 0), probability * DRAWS) for key, probability in common.items()]
    if rest * DRAWS >= 5:
        cells.append((sum(count for key, count in counts.items() if key not in common), rest * DRAWS))
    return sum((count - mean) ** 2 / mean for count, mean in cells), len(cells) - 1


@pytest.mark.parametrize("case", CASES)
def test_samples_have_their_exact_probabilities(case):
    losses, count = CASES[case]
    expected = probabilities_of_samples(losses, count)
    assert math.fsum(expected.values()) == pytest.approx(1)

    counts, included = draw_repeatedly(losses, count, seed=1)

    assert counts.keys() <= expected.keys()
    statistic, freedom = chi_square(counts, expected)
    assert freedom == 0 or statistic < chi_square_limit(freedom)
    for index in range(len(losses)):
        probability = sum(probability for key, probability in expected.items() if index in key)
        assert abs(included[index] - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-12


@pytest.mark.parametrize("count", [1, 2])
def test_other_distributions_fail_the_same_test(count):
    """The chi-square test distinguishes p = softmax(loss) from p ∝ loss and from uniform draws."""
    losses = [1.5, 2.0, 3.0, 2.5]

    for wrong in (np.log(losses), np.zeros(4)):
        counts, _ = draw_repeatedly(wrong, count, seed=1)
        statistic, freedom = chi_square(counts, probabilities_of_samples(losses, count))
        assert statistic > 3 * chi_square_limit(freedom)


def test_equal_losses_far_below_the_largest_are_drawn_evenly():
    for low in (-1e300, -1e30, -800.0):
        counts, included = draw_repeatedly([low, 3.0, low, low], 2, seed=2, times=6000)

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
    num_batches = len(losses)
    if parts > num_batches:
        with pytest.raises(TrainingError, match=f"--parts is {parts}, but a round has {num_batches} batches"):
            draw_round(np.array(losses), rate, parts, seed, 2)
        return
    bounds = part_bounds(num_batches, parts)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, num_batches)
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
    assert len(drawn) == math.floor(rate * num_batches + 0.5)
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        inside = int(((drawn >= start) & (drawn < stop)).sum())
        assert inside == draws_per_part(bounds, rate)[part]
        assert 1 <= inside <= stop - start
        assert abs(inside - rate * (stop - start)) < 1 + 1e-9
    np.testing.assert_array_equal(drawn, draw_round(np.array(losses), rate, parts, seed, 2))


def test_each_round_part_and_seed_has_its_own_random_numbers():
    losses = np.zeros(4000)

    drawn = {key: draw_round(losses, 0.5, 2, *key).tolist() for key in ((0, 2), (0, 3), (1, 2))}

    assert len({tuple(batches) for batches in drawn.values()}) == 3
    first = np.array(drawn[0, 2])[:1000]
    second = np.array(drawn[0, 2])[1000:] - 2000
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
