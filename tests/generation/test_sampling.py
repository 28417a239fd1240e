"""Picking a token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.errors import GenerationError
from mindpangu.generation.sampling import SamplingSettings, pick_token

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def drawn(settings, count=3000):
    chance = np.random.default_rng(0)
    return np.bincount([pick_token(LOGITS, settings, chance) for _ in range(count)], minlength=4) / count


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


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}])
def test_meaningless_settings_are_refused(bad):
    with pytest.raises(GenerationError, match=next(iter(bad))):
        SamplingSettings(**bad)
