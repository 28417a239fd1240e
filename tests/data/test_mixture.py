"""Mixture: shares follow the weights within one slot; weights that a schedule cannot follow are refused."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mindpangu.data.domain_groups import domain_groups
from mindpangu.data.mixture import Mixture, training_phases
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError


def run(weights, num_slots, rounds):
    """Returns the slots of each round; checks after each that every domain is less than one slot from its share."""
    mixture = Mixture(weights, num_slots)
    slots_taken = [0] * len(weights)
    schedule = []
    total = sum(weights)
    for time in range(1, rounds + 1):
        slots = mixture.next_slots(slots_taken)
        assert len(slots) == num_slots
        assert list(slots) == sorted(slots)
        for domain in slots:
            slots_taken[domain] += 1
        for domain, weight in enumerate(weights):
            assert abs(slots_taken[domain] - Fraction(weight * time * num_slots, total)) < 1, (weights, num_slots, time)
        schedule.append(slots)
    return schedule


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 60), min_size=1, max_size=14))
def test_shares_follow_the_weights_within_one_slot_and_domains_are_distinct(num_slots, weights):
    total = sum(weights)
    assume(total > 0)

    for slots in run(weights, num_slots, 80):
        assert all(weights[domain] > 0 for domain in slots)
        if max(weights) * num_slots <= total:
            assert len(set(slots)) == num_slots
        for domain, weight in enumerate(weights):  # its share of the round, rounded down or up
            assert abs(slots.count(domain) - Fraction(weight * num_slots, total)) < 1


@pytest.mark.parametrize(
    ("weights", "num_slots"),
    [
        ([3, 3, 3, 4, 5], 3),  # fails if ties of deadlines are broken by domain id alone
        ([3, 20, 20, 20, 20, 3, 29, 6, 29], 5),  # fails if they are broken by overlapping windows alone
    ],
)
def test_crowded_schedules_that_plain_earliest_deadline_first_gets_wrong_are_met(weights, num_slots):
    run(weights, num_slots, sum(weights))


def test_equal_weights_take_turns():
    assert run([1, 1, 1], 1, 6) == [(0,), (1,), (2,)] * 2
    assert run([1] * 4, 4, 2) == [(0, 1, 2, 3)] * 2


@pytest.mark.parametrize(
    ("weights", "num_slots", "schedule"),
    [
        ([9, 6, 10], 4, "0122 0012 0122 0012 0122"),  # ties that the windows' overlap decides
        ([1, 5, 2], 2, "12 01 12 11 12 01 12 11"),  # a group deadline of a share of exactly one half
    ],
)
def test_ties_are_broken_as_in_earlier_versions(weights, num_slots, schedule):
    """A run that is resumed takes its further slots from the slots taken so far: another order would change it."""
    turns = schedule.split()

    assert run(weights, num_slots, len(turns)) == [tuple(map(int, turn)) for turn in turns]


def test_fewer_domains_than_slots_repeat():
    assert run([1], 2, 3) == [(0, 0)] * 3
    assert run([1, 1], 3, 2) == [(0, 0, 1), (0, 1, 1)]


def configured(make_config, mixture, num_slots=1, names=("zh", "en", "code"), **options):
    config = make_config(names=names, domains_per_step=num_slots, mixture=mixture, **options)
    domains = build_domains(config)
    domain_groups(config, domains)  # refuses what the schedule cannot follow
    return list(training_phases(config, domains)[-1].weights)


def test_weights_are_the_decimal_numbers_of_the_configuration(make_config):
    assert configured(make_config, {}) == [1, 1, 1]
    # in binary 0.3 + 0.6 is not 0.9, so with floats one domain would seem to exceed its slot
    weights = configured(make_config, {"code": 0.9, "en": 0.3, "zh": 0.6}, 2)
    assert weights == [Fraction(6, 10), Fraction(3, 10), Fraction(9, 10)]


@pytest.mark.parametrize(
    ("mixture", "num_slots", "message"),
    [
        ({"zh": 1.0, "en": 1.0}, 1, "no weight for domain 'code'"),
        ({"zh": -1.0, "en": 1.0, "code": 1.0}, 1, "data.mixture.zh is -1.0"),
        ({"zh": float("nan"), "en": 1.0, "code": 1.0}, 1, "data.mixture.zh is nan"),
        ({"zh": 0.0, "en": 0.0, "code": 0.0}, 1, "weight 0"),
        (
            {"zh": 3.0, "en": 1.0, "code": 1.0},
            2,
            r"'zh' 60.0% .* only one of the 2 slots of a step .*data.schedule to mixed",
        ),
    ],
)
def test_weights_that_cannot_be_followed_are_refused(make_config, mixture, num_slots, message):
    with pytest.raises(ConfigError, match=message):
        configured(make_config, mixture, num_slots)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_domain_whose_experts_are_not_trained_has_no_weight(make_config, weight):
    def phases(mixture):
        config = make_config(names=("zh", "en"), domains_per_step=1, mixture=mixture)
        config = replace(config, training=replace(config.training, train="experts:zh"))
        return training_phases(config, build_domains(config))

    assert phases({"zh": 1.0, "en": 0.0})[-1].weights == (1, 0)
    with pytest.raises(ConfigError, match=r"domain 'en' a weight, but training.train is 'experts:zh'"):
        phases({"zh": 1.0, "en": weight})


@pytest.mark.parametrize(
    ("mixture", "local", "num_slots", "message"),
    [
        ({}, 8, 2, "domains_per_step is 2, .* need 3 slots .3 domains .*local_batch_size is 8.; set .* to 3, or"),
        ({"zh": 1, "en": 1, "code": 1}, 2, 1, "need 2 slots .3 domains .*local_batch_size is 2.; set .* to 2, or"),
        ({"zh": 1, "en": 9, "code": 0}, 8, 1, "need 2 slots .2 domains"),
    ],
)
def test_a_mixed_schedule_needs_a_slot_for_every_domain_of_a_micro_batch(
    make_config, mixture, local, num_slots, message
):
    options = {"local": local, "schedule": "mixed"}

    with pytest.raises(ConfigError, match=message):
        configured(make_config, mixture, num_slots, **options)

    weights = configured(make_config, mixture, num_slots + 1, **options)  # one more slot is enough for any weights
    assert weights == [1, 1, 1] or weights == list(mixture.values())


def test_a_domain_may_dominate_when_there_are_too_few_for_the_slots(make_config):
    weights = configured(make_config, {"zh": 9.0, "en": 1.0, "code": 0.0}, 4)
    assert run([int(weight) for weight in weights], 4, 3) == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0)]


def test_the_schedule_depends_only_on_the_slots_taken():
    weights = [5, 3, 2, 1, 1]
    num_slots = 2
    schedule = run(weights, num_slots, 40)
    slots_taken = [sum(slots.count(domain) for slots in schedule[:17]) for domain in range(5)]

    assert Mixture(weights, num_slots).next_slots(slots_taken) == schedule[17]
