"""The two schedules of domains: the domains of a step as a function of the samples taken so far."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mindpangu.data import equal_parts
from mindpangu.data.mixture import Mixture
from mindpangu.data.schedule import Mixed, Rotating, build_schedules
from mindpangu.domains import build_domains


def advance(slots_taken, slots):
    for domain in slots.domains_B().tolist():
        slots_taken[domain] += 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.integers(1, 11), st.integers(1, 3), st.data())
def test_mixed_shares_stay_within_one_sample_at_any_time(weights, local, micro_batches, data):
    """Holds for any weights after every micro-batch. Domains fill ascending slots; unused slots repeat the last one."""
    total = sum(weights)
    positive = sum(weight > 0 for weight in weights)
    assume(total > 0)
    num_slots = min(positive, local) + data.draw(st.integers(0, 2))
    schedule = Mixed(weights, local, num_slots, micro_batches)
    slots_taken = [0] * len(weights)

    for _ in range(30):
        step = schedule.step(slots_taken)
        assert len(step) == micro_batches
        for slots in step:
            advance(slots_taken, slots)
            for domain, weight in enumerate(weights):
                assert abs(slots_taken[domain] - Fraction(weight * sum(slots_taken), total)) < 1
            used = sorted(set(slots.slot_of_sample_B.tolist()))
            assert used == list(range(len(used)))
            assert len(slots.domain_of_slot) == num_slots
            domains = slots.domain_of_slot[: len(used)]
            assert list(domains) == sorted(set(domains))
            assert set(slots.domain_of_slot[len(used) :]) <= {domains[-1]}
            assert slots.slot_of_sample_B.shape == (local,)
            assert slots.slot_of_sample_B.dtype == np.int32
            assert (np.diff(slots.slot_of_sample_B) >= 0).all()


def test_rotating_without_accumulation_chooses_for_every_micro_batch():
    """The sequence equals that of versions without schedules, so that old runs without accumulation resume."""
    weights = [1, 2, 3, 4]
    schedule = Rotating(weights, 6, 2, 1)
    slots_taken = [0] * 4
    groups = []

    for _ in range(10):
        (slots,) = schedule.step(slots_taken)
        groups.append(slots.domain_of_slot)
        np.testing.assert_array_equal(slots.slot_of_sample_B, [0, 0, 0, 1, 1, 1])
        advance(slots_taken, slots)

    assert groups == [(2, 3), (1, 3), (2, 3), (2, 3), (0, 1), (2, 3), (1, 3), (2, 3), (2, 3), (0, 1)]
    assert slots_taken == [3 * 2 * weight for weight in weights]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_rotating_chooses_once_per_step(weights, num_slots, part, micro_batches):
    total = sum(weights)
    assume(total > 0)
    schedule = Rotating(weights, num_slots * part, num_slots, micro_batches)
    mixture = Mixture(weights, num_slots)
    taken_from_schedule = [0] * len(weights)
    taken_from_mixture = [0] * len(weights)

    assert schedule.samples_per_choice == part * micro_batches
    for _ in range(25):
        step = schedule.step(taken_from_schedule)
        domains = mixture.next_slots(taken_from_mixture)
        assert [slots.domain_of_slot for slots in step] == [domains] * micro_batches
        for slots in step:
            np.testing.assert_array_equal(slots.slot_of_sample_B, np.repeat(np.arange(num_slots), part))
            advance(taken_from_schedule, slots)
        for domain in domains:
            taken_from_mixture[domain] += 1
        for domain, weight in enumerate(weights):  # within one domain slot of a step
            share = Fraction(weight * sum(taken_from_schedule), total)
            assert abs(taken_from_schedule[domain] - share) < schedule.samples_per_choice


def test_equal_weights_rotate_over_all_domains_step_by_step(make_config):
    config = make_config(local=4, world=12, domains_per_step=2)
    ((_, schedule),) = build_schedules(config, build_domains(config))
    slots_taken = [0] * 4
    groups = []

    for _ in range(4):
        step = schedule.step(slots_taken)
        assert len(step) == 3
        groups.append({slots.domain_of_slot for slots in step})
        for slots in step:
            advance(slots_taken, slots)

    assert groups == [{(0, 1)}, {(2, 3)}] * 2


@pytest.mark.parametrize(
    ("batch", "slots", "expected"),
    [(4, 2, [0, 0, 1, 1]), (3, 3, [0, 1, 2]), (5, 2, [0, 0, 0, 1, 1]), (2, 4, [0, 2]), (1, 1, [0])],
)
def test_equal_parts_are_int32_and_differ_by_at_most_one_sample(batch, slots, expected):
    assert equal_parts(batch, slots).tolist() == expected
    assert equal_parts(batch, slots).dtype == np.int32
