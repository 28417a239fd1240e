"""Sampling: temperature, top-k, top-p, penalties, and the random numbers drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.errors import GenerationError
from mindpangu.generation.sampling import Sampler, SamplingSettings, largest, pick_token

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def drawn(settings, count=3000):
    rng = np.random.default_rng(0)
    return np.bincount([pick_token(LOGITS, settings, rng) for _ in range(count)], minlength=4) / count


def test_greedy_takes_the_most_likely_and_the_first_of_equals():
    assert pick_token(LOGITS, SamplingSettings(), np.random.default_rng(0)) == 1
    assert pick_token(np.zeros(3, np.float32), SamplingSettings(), np.random.default_rng(0)) == 0


def test_temperature_one_draws_the_distribution():
    np.testing.assert_allclose(drawn(SamplingSettings(temperature=1)), [0.1, 0.4, 0.2, 0.3], atol=0.03)


def test_low_temperature_sharpens():
    assert drawn(SamplingSettings(temperature=0.1))[1] > 0.9


def test_top_k_and_top_p_cut_the_tail():
    np.testing.assert_allclose(drawn(SamplingSettings(1, top_k=2)), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    np.testing.assert_allclose(drawn(SamplingSettings(1, top_p=0.75)), [0, 4 / 9, 2 / 9, 3 / 9], atol=0.03)
    assert drawn(SamplingSettings(1, top_p=0.01))[1] == 1


@given(
    logits=st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.001, 1),
)
def test_any_settings_give_a_token(logits, temperature, top_k, top_p):
    settings = SamplingSettings(temperature, top_k, top_p)
    assert 0 <= pick_token(np.array(logits, np.float32), settings, np.random.default_rng(0)) < len(logits)


# ---- Against a plain reference ---------------------------------------------------------------------------------------


def reference_distribution(logits, settings, prompt=(), generated=()):
    """Computes the probability of every token by sorting all of them, with one Python loop per rule."""
    scores = [float(score) for score in logits]
    for token in {*prompt, *generated}:
        penalty = settings.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(generated):
        scores[token] -= settings.frequency_penalty * list(generated).count(token) + settings.presence_penalty
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if settings.temperature == 0:
        return np.eye(len(scores))[order[0]]
    weights = np.exp((np.array(scores) - max(scores)) / settings.temperature)
    kept = []
    reached = 0.0
    candidates = order[: settings.top_k or None]
    total = sum(weights[token] for token in candidates)
    for token in candidates:
        if kept and reached >= settings.top_p * total:
            break
        kept.append(token)
        reached += weights[token]
    probabilities = np.zeros(len(scores))
    probabilities[kept] = weights[kept]
    return probabilities / probabilities.sum()


class FixedRng:
    """A random number generator that always returns the same number."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


# scores are multiples of 1/16: two sums never differ by rounding alone, so both sides cut at the same token
SCORES = st.lists(st.integers(-48, 48).map(lambda value: value / 16), min_size=1, max_size=30)
TOKENS = st.lists(st.integers(0, 29), max_size=12)


@given(
    logits=SCORES,
    prompt=TOKENS,
    generated=TOKENS,
    temperature=st.sampled_from([0, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 35),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.13]),
    repetition=st.sampled_from([1.0, 1.3, 0.8]),
    frequency=st.sampled_from([0.0, 1.5, -0.25]),
    presence=st.sampled_from([0.0, 0.3]),
    value=st.floats(0, 1, exclude_max=True),
)
def test_the_drawn_token_is_that_of_the_reference(
    logits, prompt, generated, temperature, top_k, top_p, repetition, frequency, presence, value
):
    settings = SamplingSettings(temperature, top_k, top_p, 0, repetition, frequency, presence)
    prompt = [token for token in prompt if token < len(logits)]
    generated = [token for token in generated if token < len(logits)]
    sampler = Sampler(settings, prompt)
    for token in generated:  # as if it had been sampled
        sampler._seen.add(token)
        sampler._counts[token] = sampler._counts.get(token, 0) + 1
    sampler._rng = FixedRng(value)
    given_logits = np.array(logits, np.float32)
    before = given_logits.copy()

    token = sampler.pick(given_logits)

    np.testing.assert_array_equal(given_logits, before)
    expected = reference_distribution(logits, settings, prompt, generated)
    assert expected[token] > 0
    if top_k == 0 and top_p == 1 and temperature:  # tokens are drawn in the order of their ids
        reached = np.cumsum(expected)
        assert reached[token] - expected[token] - 1e-6 <= value <= reached[token] + 1e-6


@given(scores=st.lists(st.integers(-5, 5), min_size=1, max_size=40), count=st.integers(1, 45))
def test_largest_is_the_head_of_a_stable_sort(scores, count):
    scores = np.array(scores, np.float32)
    np.testing.assert_array_equal(largest(scores, count), np.argsort(-scores, kind="stable")[:count])


def test_top_p_of_a_flat_distribution_looks_beyond_its_first_guess():
    settings = SamplingSettings(temperature=1.0, top_p=0.9)
    rng = np.random.default_rng(0)

    drawn = {pick_token(np.zeros(1000, np.float32), settings, rng) for _ in range(3000)}

    assert 800 < len(drawn) <= 900
    assert max(drawn) < 900  # ties go to the lower ids


def test_penalties_change_what_greedy_takes():
    logits = np.array([2.0, 1.9, 1.0], np.float32)
    assert Sampler(SamplingSettings(), [0]).pick(logits) == 0
    assert Sampler(SamplingSettings(repetition_penalty=1.2), [0]).pick(logits) == 1
    # the prompt does not count as generated
    assert Sampler(SamplingSettings(frequency_penalty=1.5, presence_penalty=0.3), [0]).pick(logits) == 0
    sampler = Sampler(SamplingSettings(frequency_penalty=0.06), [])
    assert [sampler.pick(logits) for _ in range(5)] == [0, 0, 1, 0, 1]


def test_scores_that_are_not_finite_are_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(GenerationError, match="scores are not finite"):
            pick_token(np.array([0, bad, 1], np.float32), SamplingSettings(temperature=1), np.random.default_rng(0))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"seed": -1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"presence_penalty": float("nan")},
    ],
)
def test_invalid_settings_are_refused(bad):
    with pytest.raises(GenerationError, match=next(iter(bad))):
        SamplingSettings(**bad)
