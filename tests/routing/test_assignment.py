"""Assigning tokens to experts: evenness, balance, and independence of layers, domains, and streams."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.config import RoutingConfig
from mindpangu.errors import RoutingError
from mindpangu.routing import (
    assign_balanced,
    assign_layers,
    assign_random,
    assignment_rng,
    grouping_overlap,
    most_frequent_tokens,
)


@st.composite
def groups(draw):
    """Draws (token counts [V] with many unseen ids, a number of experts up to V, a random generator)."""
    counts_V = np.array(draw(st.lists(st.integers(0, 50) | st.sampled_from([0, 0, 10**6]), min_size=1, max_size=200)))
    num_experts = draw(st.integers(1, counts_V.size))
    return counts_V, num_experts, np.random.default_rng(draw(st.integers(0, 2**32)))


def zipf_counts(vocab_size):
    """Returns counts after Zipf's law, with a head so flat that no token exceeds the mean load of 16 experts."""
    return (10**7 / np.arange(20, vocab_size + 20) ** 1.1).astype(np.int64)


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32))
def test_random_gives_every_expert_the_same_number_of_token_ids(vocab_size, num_experts, seed):
    num_experts = min(num_experts, vocab_size)

    experts_V = assign_random(vocab_size, num_experts, np.random.default_rng(seed))

    assert experts_V.dtype == np.uint16
    assert experts_V.shape == (vocab_size,)
    owned_E = np.bincount(experts_V)
    assert owned_E.size == num_experts
    assert owned_E.max() - owned_E.min() == (vocab_size % num_experts != 0)


def test_random_deals_shuffled_decks():
    decks = assign_random(1600, 16, np.random.default_rng(0)).reshape(-1, 16)

    np.testing.assert_array_equal(np.sort(decks, axis=1), np.tile(np.arange(16), (100, 1)))
    assert len(np.unique(decks, axis=0)) == 100


@given(groups(), st.floats(0, 2))
def test_balanced_bounds_the_load_and_evens_out_the_unseen_ids(group, jitter):
    counts_V, num_experts, rng = group

    experts_V = assign_balanced(counts_V, num_experts, rng, jitter)

    assert experts_V.dtype == np.uint16
    assert experts_V.max() < num_experts
    # An expert that receives a token was the least loaded, hence below the mean: the bound holds for any order.
    load_E = np.bincount(experts_V, weights=counts_V, minlength=num_experts)
    assert load_E.max() <= counts_V.sum() / num_experts + counts_V.max()
    assert (load_E > 0).sum() == min(num_experts, (counts_V > 0).sum())
    # An expert got unseen ids only while no other expert owned fewer ids by more than one.
    owned_E = np.bincount(experts_V, minlength=num_experts)
    unseen_E = np.bincount(experts_V[counts_V == 0], minlength=num_experts)
    assert owned_E[unseen_E > 0].max(initial=0) <= owned_E.min() + 1


def test_balanced_splits_zipf_text_evenly_where_random_does_not():
    counts_V = zipf_counts(8000)

    for jitter in (0.0, 0.5):
        load_E = np.bincount(assign_balanced(counts_V, 16, np.random.default_rng(1), jitter), weights=counts_V)
        assert load_E.max() < 1.001 * load_E.mean()

    load_E = np.bincount(assign_random(8000, 16, np.random.default_rng(1)), weights=counts_V)
    assert load_E.max() > 1.02 * load_E.mean()


def test_balanced_does_not_give_the_hottest_token_to_the_same_expert_in_every_layer():
    experts_LV = assign_layers(zipf_counts(500), 16, 12, "zh", RoutingConfig(jitter=0))

    assert len(set(experts_LV[:, 0])) > 4


def test_unseen_tokens_are_dealt_like_random():
    experts_V = assign_balanced(np.zeros(1000, np.int64), 16, np.random.default_rng(0), 0.5)

    assert set(np.bincount(experts_V)) == {62, 63}
    assert (np.diff(experts_V.astype(int)) < 0).sum() > 400, "shuffled, not dealt in turn"


@pytest.mark.parametrize("assignment", ["random", "balanced"])
def test_a_stream_belongs_to_its_seed_layer_and_domain_name(assignment):
    def draw(seed=0, num_layers=3, name="zh"):
        return assign_layers(zipf_counts(2000), 16, num_layers, name, RoutingConfig(assignment=assignment, seed=seed))

    reference_LV = draw()

    np.testing.assert_array_equal(reference_LV, draw())
    np.testing.assert_array_equal(reference_LV, draw(num_layers=5)[:3])
    for other_LV in (draw(seed=1), draw(name="zh2"), np.roll(reference_LV, 1, axis=0)):
        # By chance 1/16 of the entries are equal, with a standard deviation of 0.005.
        assert ((reference_LV == other_LV).mean(axis=1) < 0.1).all()


def test_streams_are_the_same_on_every_machine_and_in_every_process():
    # Python's hash() of a name differs between processes; this one must not
    assert assignment_rng(0, 0, "zh").bit_generator.random_raw() == 7939562175555490828
    assert assignment_rng(0, 1, "code").bit_generator.random_raw() == 11723921102619167373


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["zh", "en"]))
def test_no_two_layers_overlap_more_than_allowed(seed, name):
    counts_V = zipf_counts(1500)

    experts_LV = assign_layers(counts_V, 16, 8, name, RoutingConfig(seed=seed))

    frequent = most_frequent_tokens(counts_V)
    overlaps = [grouping_overlap(experts_LV[a], experts_LV[b], frequent) for a in range(8) for b in range(a)]
    assert max(overlaps) <= 1.5


def test_a_layer_that_overlaps_too_much_is_drawn_again(monkeypatch):
    counts_V = zipf_counts(1500)
    draws = []

    def same_twice(counts_V, num_experts, rng, jitter):
        fixed_rng = np.random.default_rng(7) if len(draws) < 2 else rng
        draws.append(assign_balanced(counts_V, num_experts, fixed_rng, jitter))
        return draws[-1]

    monkeypatch.setattr("mindpangu.routing.assignment.assign_balanced", same_twice)

    experts_LV = assign_layers(counts_V, 16, 2, "zh", RoutingConfig())

    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(experts_LV, [draws[0], draws[2]])


@pytest.mark.parametrize(
    ("overlaps", "kept", "left"),
    [
        ([4.0, 2.0, 3.0, 2.0, *[5.0] * 36], 1, 0),
        ([*[5.0] * 39, 4.0], 39, 0),  # the last of 40 draws
        ([1.51, 1.5, 0.0], 1, 1),  # an overlap of 1.5 is good enough
    ],
)
def test_the_first_good_draw_is_kept_or_else_the_best_one(monkeypatch, overlaps, kept, left):
    counts_V = zipf_counts(300)
    overlaps_of_draws = iter(overlaps)
    monkeypatch.setattr("mindpangu.routing.assignment.grouping_overlap", lambda *_: next(overlaps_of_draws))

    experts_LV = assign_layers(counts_V, 16, 2, "zh", RoutingConfig(seed=3))

    kept_V = assign_balanced(counts_V, 16, assignment_rng(3, 1, "zh", attempt=kept), RoutingConfig.jitter)
    np.testing.assert_array_equal(experts_LV[1], kept_V)
    assert len(list(overlaps_of_draws)) == left


def test_without_jitter_layers_group_the_frequent_tokens_alike():
    counts_V = zipf_counts(1500)

    experts_LV = assign_layers(counts_V, 16, 2, "zh", RoutingConfig(jitter=0))

    assert grouping_overlap(*experts_LV, most_frequent_tokens(counts_V)) > 10


def test_overlap_compares_common_pairs_with_chance():
    one = np.array([0, 0, 1, 1, 9])

    assert grouping_overlap(one, one, np.arange(4)) == 2 / (2 * 2 / 6)
    assert grouping_overlap(one, np.array([1, 0, 1, 0, 9]), np.arange(4)) == 0
    assert grouping_overlap(one, np.array([5, 5, 5, 0, 9]), np.arange(4)) == 1 / (2 * 3 / 6)
    assert grouping_overlap(np.arange(5), one, np.arange(4)) == 0
    zeros = np.zeros(5, np.uint16)
    assert grouping_overlap(zeros, zeros, np.arange(5)) == 1


def test_overlap_of_independent_layers_is_one_and_of_equal_layers_the_number_of_experts():
    rng = np.random.default_rng(0)
    layers = [assign_random(6400, 16, rng) for _ in range(2)]

    assert grouping_overlap(*layers, np.arange(6400)) == pytest.approx(1, abs=0.02)
    assert grouping_overlap(layers[0], layers[0], np.arange(6400)) == pytest.approx(16, rel=0.02)


def test_most_frequent_tokens_leave_out_tokens_that_never_occur():
    np.testing.assert_array_equal(most_frequent_tokens(np.array([3, 0, 7, 7, 1]), limit=10), [2, 3, 0, 4])
    np.testing.assert_array_equal(most_frequent_tokens(np.array([3, 0, 7, 7, 1]), limit=2), [2, 3])
    np.testing.assert_array_equal(most_frequent_tokens(np.ones(300, np.int64)), np.arange(200))


@pytest.mark.parametrize(
    ("counts_V", "message"),
    [
        (np.ones(3, np.int64), "4 experts cannot share 3 token ids.*experts_per_domain"),
        (np.zeros(0, np.int64), "4 experts cannot share 0 token ids"),
        (np.array([1, 2, -1, 1]), "token id 2 has the count -1"),
        (np.ones(8), "token counts are float64 of shape"),
        (np.ones((2, 8), np.int64), r"int64 of shape \(2, 8\)"),
    ],
)
def test_unusable_counts_are_refused(counts_V, message):
    with pytest.raises(RoutingError, match=message):
        assign_balanced(counts_V, 4, np.random.default_rng(0), 0.5)
    with pytest.raises(RoutingError, match=message):
        assign_layers(counts_V, 4, 2, "zh", RoutingConfig(assignment="random"))


@pytest.mark.parametrize("assignment", ["random", "balanced"])
def test_a_group_without_experts_is_refused(assignment):
    with pytest.raises(RoutingError, match="0 experts cannot share 8 token ids"):
        assign_layers(np.ones(8, np.int64), 0, 2, "zh", RoutingConfig(assignment=assignment))


def test_counts_may_be_unsigned():
    counts_V = zipf_counts(300)
    expected_LV = assign_layers(counts_V, 16, 2, "zh", RoutingConfig())

    experts_LV = assign_layers(counts_V.astype(np.uint32), 16, 2, "zh", RoutingConfig())

    np.testing.assert_array_equal(experts_LV, expected_LV)


def test_a_layer_that_is_drawn_again_does_not_change_between_versions():
    """The fourth layer overlaps too much with those below in two draws, and keeps the third."""
    counts_V = 10**6 // (np.arange(500) + 20)

    experts_LV = assign_layers(counts_V, 64, 4, "zh", RoutingConfig(seed=7, assignment="balanced"))

    assert experts_LV[3, :6].tolist() == [11, 24, 43, 34, 20, 41]
    rng = assignment_rng(7, 3, "zh", attempt=2)
    np.testing.assert_array_equal(experts_LV[3], assign_balanced(counts_V, 64, rng, RoutingConfig().jitter))


@pytest.mark.parametrize("seed", [3, 8])
def test_a_layer_is_compared_with_all_layers_below(seed):
    """These layers, compared only with their neighbours, overlap 3 × chance."""
    counts_V = 10**6 // (np.arange(500) + 20)
    frequent = most_frequent_tokens(counts_V)

    experts_LV = assign_layers(counts_V, 64, 5, "zh", RoutingConfig(seed=seed))

    for above, below in itertools.combinations(experts_LV, 2):
        assert grouping_overlap(above, below, frequent) <= 1.5


def test_without_jitter_a_layer_is_drawn_once(monkeypatch):
    """All draws group the frequent tokens alike, so more of them would only take time."""
    attempts = []

    def counted(seed, layer, domain_name, attempt=0):
        attempts.append((layer, attempt))
        return assignment_rng(seed, layer, domain_name, attempt)

    monkeypatch.setattr("mindpangu.routing.assignment.assignment_rng", counted)

    assign_layers(zipf_counts(300), 16, 2, "zh", RoutingConfig(jitter=0))

    assert attempts == [(0, 0), (1, 0)]
