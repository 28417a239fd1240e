"""Replaying steps of the training stream: the same batches, a state that fits no other round, and no end."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.config.schema import PhaseConfig
from mindpangu.data import Loader, ReplayLoader
from mindpangu.errors import DataError

PHASES = [PhaseConfig(steps=5, mixture={"en": 1, "zh": 2})]
SCHEDULES = {
    "rotating": {},
    "accumulated": {"world": 8, "domains_per_step": 2},
    "mixed": {"schedule": "mixed", "domains_per_step": 4, "mixture": {"bilingual": 3, "zh": 4, "en": 5, "code": 8}},
    "phases": {"phases": PHASES},
}


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def stream_of(tiny_shards, config, steps):
    """Returns (state before each step, micro-batches of each step, state at the end)."""
    loader = Loader(*tiny_shards, config)
    states = []
    batches = []
    for _ in range(steps):
        states.append(loader.state())
        batches.append(loader.next_step().micro_batches)
    return states, batches, loader.state()


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(SCHEDULES)), step_indices=st.lists(st.integers(0, 29), min_size=1, max_size=12))
def test_replayed_batches_equal_those_of_the_stream(tiny_shards, make_config, kind, step_indices):
    config = make_config(seed=3, **SCHEDULES[kind])
    states, batches, end = stream_of(tiny_shards, config, 30)
    replay = ReplayLoader(Loader(*tiny_shards, config), 2, [states[step] for step in step_indices], "digest", end)

    for num_taken, step in enumerate([*step_indices, *step_indices], 1):  # the first step follows the last
        actual = replay.next_step()
        assert_same(actual.micro_batches, batches[step])
        assert actual.next_state == replay.state() == {"round": 2, "batch": num_taken, "sample": "digest"}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_skipping_a_step_changes_the_state_like_reading_it(tiny_shards, make_config, kind):
    config = make_config(**SCHEDULES[kind])
    states, batches, _ = stream_of(tiny_shards, config, 12)
    loader = Loader(*tiny_shards, config)

    for state in states:
        assert loader.state() == state
        loader.skip_step()

    loader.load_state(states[4])
    loader.skip_step()
    assert_same(loader.next_step().micro_batches, batches[5])


def test_replay_resumes_from_its_state_or_begins_after_the_previous_round(tiny_shards, make_config):
    config = make_config()
    states, batches, end = stream_of(tiny_shards, config, 8)
    step_indices = [1, 4, 6]

    def replay():
        return ReplayLoader(Loader(*tiny_shards, config), 2, [states[step] for step in step_indices], "digest", end)

    first = replay()
    first.next_step()
    resumed = replay()

    resumed.load_state(json.loads(json.dumps(first.state())))
    assert_same(resumed.next_step().micro_batches, batches[4])

    resumed.load_state(json.loads(json.dumps(end)))
    assert_same(resumed.next_step().micro_batches, batches[1])

    resumed.load_state({"round": 2, "batch": 3, "sample": "digest"})  # the end of the round is a valid state
    resumed.load_state({"round": 2, "batch": 0, "sample": "digest"})  # and so is its beginning
    assert_same(resumed.next_step().micro_batches, batches[1])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"samples_taken": [0, 0, 0, 0]},
        {"round": 3, "batch": 1, "sample": "digest"},
        {"round": 2, "batch": 1, "sample": "another"},
        {"round": 2, "batch": 4, "sample": "digest"},
        {"round": 2, "batch": -1, "sample": "digest"},
        {"round": 2, "batch": True, "sample": "digest"},
        {"round": 2, "sample": "digest"},
    ],
)
def test_any_other_state_is_refused(tiny_shards, make_config, state):
    states, _, end = stream_of(tiny_shards, make_config(), 4)
    replay = ReplayLoader(Loader(*tiny_shards, make_config()), 2, states[:3], "digest", end)

    with pytest.raises(DataError, match="does not belong to round 2, whose sample has 3 batches and the digest digest"):
        replay.load_state(state)


def test_a_plain_loader_recognises_the_state_of_a_round(tiny_shards, make_config):
    loader = Loader(*tiny_shards, make_config())

    with pytest.raises(DataError, match="is in round 2 of several; continue with `mindpangu tiny rounds`"):
        loader.load_state({"round": 2, "batch": 1, "sample": "digest"})
