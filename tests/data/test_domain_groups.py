"""Groups of domains that train in parallel: equal weights, the tolerance, and a schedule that follows the weights."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mindpangu.config import load_config
from mindpangu.data import domain_groups as search
from mindpangu.data.domain_groups import domain_groups, group_domains
from mindpangu.data.mixture import Phase
from mindpangu.data.schedule import build_schedules
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.mesh import Mesh


def grouped(weights, num_groups, tolerance=0.01, phases=()):
    names = [f"d{index}" for index in range(len(weights))]
    all_phases = [
        Phase(f"phase {index}", index, tuple(map(Fraction, each))) for index, each in enumerate((*phases, weights))
    ]
    return group_domains(all_phases, names, num_groups, tolerance)


def worst_miss(weights, groups):
    """Returns the largest difference between a domain's share of the tokens and its share of the weights, exactly."""
    group_weights = [sum(weights[domain] for domain in group) for group in groups]
    if not all(group_weights):
        return Fraction(1)
    return max(
        abs(Fraction(weights[domain], group_weight * len(groups)) - Fraction(weights[domain], sum(weights)))
        for group, group_weight in zip(groups, group_weights, strict=True)
        for domain in group
    )


@given(st.data())
def test_weights_are_refused_only_if_no_assignment_meets_them(data):
    num_groups = data.draw(st.integers(2, 3))
    count = data.draw(st.integers(3, 6))
    phases = [
        data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count).filter(any))
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    tolerance = data.draw(st.sampled_from([0.0, 0.01, 0.05]))
    assignments = [
        [[domain for domain in range(count) if group_of_domain[domain] == group] for group in range(num_groups)]
        for group_of_domain in itertools.product(range(num_groups), repeat=count)
    ]
    possible = any(all(float(worst_miss(phase, groups)) <= tolerance for phase in phases) for groups in assignments)

    if possible:
        groups = grouped(phases[-1], num_groups, tolerance, phases[:-1])
        assert all(float(worst_miss(phase, groups)) <= tolerance for phase in phases)
    else:
        with pytest.raises(ConfigError, match=r"data\.domain_groups"):
            grouped(phases[-1], num_groups, tolerance, phases[:-1])


NEED_EXCHANGES = [
    (4, [[46, 25, 15, 46, 13, 12, 9, 18]]),
    (4, [[3, 1, 7, 5, 8, 6, 2, 4], [5, 5, 9, 6, 6, 6, 2, 5]]),
    (4, [[4, 13, 5, 6, 7, 9, 4, 4], [1, 9, 6, 7, 2, 6, 3, 2]]),
    (4, [[19, 15, 17, 3, 20, 26, 16, 9, 15]]),
    (3, [[8, 31, 14, 10, 32, 4, 13, 17, 17, 1]]),
    (3, [[6, 8, 3, 3, 3, 4, 7, 5, 6, 3], [9, 6, 3, 4, 1, 1, 8, 5, 4, 4]]),
]
"""Groups, and weights of each phase, that divide exactly; there are too many assignments to try all."""

NEED_ALL_ASSIGNMENTS = [
    (4, [[258, 148, 80, 79, 269, 55, 131]]),
    (4, [[8, 13, 25, 15, 4, 19, 21], [2, 13, 3, 18, 4, 21, 27]]),
    (3, [[2, 24, 21, 8, 3, 24, 3, 2], [17, 17, 16, 19, 16, 23, 11, 30]]),
    (2, [[746, 568, 3024, 1013, 213, 1289, 1853, 1261, 552, 625, 1594, 1030]]),
]
"""Groups, and weights of each phase, whose best assignment no exchange of two domains finds."""


def assert_partition(groups, num_groups, count):
    assert len(groups) == num_groups
    assert all(groups)
    assert sorted(itertools.chain(*groups)) == list(range(count))


def best_miss(phases, num_groups, max_domains=99):
    """Tries all assignments; returns the worst miss of the best one, exactly."""
    shares = np.array([np.array(weights) / sum(weights) for weights in phases])
    found = []
    for chosen in itertools.product(range(num_groups), repeat=len(phases[0]) - 1):
        groups = [[] for _ in range(num_groups)]
        for domain, group in enumerate((0, *chosen)):  # the groups have no order: domain 0 is in group 0
            groups[group].append(domain)
        sums = [shares[:, group].sum(1) for group in groups]
        if all(map(np.all, sums)) and max(map(len, groups)) <= max_domains:
            # a domain's miss is its share times the relative miss of its group
            misses = [
                shares[:, group].max(1) * abs(1 / total / num_groups - 1)
                for group, total in zip(groups, sums, strict=True)
            ]
            found.append((np.max(misses), groups))
    least = min(found)[0]
    close = [groups for miss, groups in found if miss <= least + 1e-9]  # exact arithmetic on all takes too long
    return min(max(worst_miss(weights, groups) for weights in phases) for groups in close)


@pytest.mark.parametrize(("num_groups", "phases"), NEED_EXCHANGES)
def test_exchanges_find_groups_that_greedy_assignment_misses(monkeypatch, num_groups, phases):
    groups = grouped(phases[-1], num_groups, 0.0, phases[:-1])

    assert_partition(groups, num_groups, len(phases[0]))
    assert [worst_miss(weights, groups) for weights in phases] == [0] * len(phases)

    monkeypatch.setattr(search, "_exchanges", lambda *arguments: iter(()))
    with pytest.raises(ConfigError, match=r"data\.domain_groups"):
        grouped(phases[-1], num_groups, 0.0, phases[:-1])


@pytest.mark.parametrize(("num_groups", "phases"), NEED_ALL_ASSIGNMENTS)
def test_all_assignments_are_tried_if_there_are_few(monkeypatch, num_groups, phases):
    best = best_miss(phases, num_groups)
    tolerance = float(best)

    groups = grouped(phases[-1], num_groups, tolerance, phases[:-1])

    assert_partition(groups, num_groups, len(phases[0]))
    assert max(worst_miss(weights, groups) for weights in phases) == best
    if best:
        with pytest.raises(ConfigError, match=f"is off by {tolerance:.2%}"):
            grouped(phases[-1], num_groups, tolerance * 0.999, phases[:-1])
    monkeypatch.setattr(search, "_MAX_ASSIGNMENTS", 0)
    with pytest.raises(ConfigError, match=r"data\.domain_groups"):
        grouped(phases[-1], num_groups, tolerance, phases[:-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 3), st.lists(st.integers(0, 9), min_size=7, max_size=7))
@example(3, [0, 0, 1, 3, 3, 3, 3])
@example(3, [0, 0, 0, 0, 99, 1, 1])
def test_a_refusal_names_the_best_that_is_possible(num_groups, weights):
    assume(sum(weight > 0 for weight in weights) >= num_groups)
    best = best_miss([weights], num_groups)

    if best == 0:
        groups = grouped(weights, num_groups, 0.0)
        assert_partition(groups, num_groups, len(weights))
        assert worst_miss(weights, groups) == 0
    else:
        with pytest.raises(ConfigError, match=f"is off by {float(best):.2%}"):
            grouped(weights, num_groups, 0.0)


@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.07])
def test_a_miss_that_equals_the_tolerance_meets_it(tolerance):
    """The first domain should have half of the tokens and gets this much more."""
    percent = round(100 * tolerance)
    shares = (Fraction(1, 2) + Fraction(percent, 100), Fraction(1, 2) - Fraction(percent, 100))
    assert worst_miss(shares, [[0], [1]]) == Fraction(percent, 100)

    assert grouped(shares, 2, tolerance) == ((0,), (1,))
    with pytest.raises(ConfigError, match=f"is off by {percent}.00%"):
        grouped(shares, 2, tolerance - 1e-12)


@pytest.mark.parametrize(
    ("num_groups", "phases", "tolerance", "groups"),
    [
        (4, [[1, 1, 1, 1, 0, 0, 0, 0]], 0.0, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (4, [range(1, 17)], 0.0, [[0, 7, 8, 15], [1, 6, 9, 14], [2, 5, 10, 13], [3, 4, 11, 12]]),
        (2, [[7, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1]], 0.05, [[0, 4, 6, 7, 9], [1, 2, 3, 5, 8, 10]]),
        (3, [[7, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1]], 0.05, [[0, 8, 10], [1, 3, 5, 9], [2, 4, 6, 7]]),
        (4, [[46, 25, 15, 46, 13, 12, 9, 18]], 0.0, [[0], [3], [1, 5, 6], [2, 4, 7]]),
        (4, [[19, 15, 17, 3, 20, 26, 16, 9, 15]], 0.0, [[5, 7], [4, 8], [0, 6], [1, 2, 3]]),
        (3, [[8, 31, 14, 10, 32, 4, 13, 17, 17, 1]], 0.0, [[4, 5, 6], [1, 7, 9], [0, 2, 3, 8]]),
        (
            4,
            [[4, 13, 5, 6, 7, 9, 4, 4], [1, 9, 6, 7, 2, 6, 3, 2]],
            0.0,
            [[1], [5, 6], [3, 4], [0, 2, 7]],
        ),
        (  # these two are too many to try all assignments
            4,
            [[1, 1, 0, 9, 2, 6, 5, 7, 2, 1, 9, 2, 5, 7, 6, 4, 0], [2, 3, 5, 3, 1, 0, 5, 3, 1, 0, 0, 0, 7, 8, 9, 2, 0]],
            0.01,
            [[1, 3, 4, 6, 16], [2, 10, 13], [0, 5, 8, 12, 15], [7, 9, 11, 14]],
        ),
        (
            3,
            [
                [0, 83, 16, 34, 39, 67, 0, 84, 0, 0, 11, 57, 67],
                [0, 22, 58, 0, 35, 65, 0, 85, 71, 0, 26, 46, 81],
            ],
            0.01,
            [[0, 1, 8, 10, 11], [2, 3, 4, 5, 9], [6, 7, 12]],
        ),
    ],
)
def test_groups_do_not_change_between_versions(num_groups, phases, tolerance, groups):
    """A run that is resumed takes the micro-batches of its groups in their order: others would change the stream."""
    assert grouped(phases[-1], num_groups, tolerance, phases[:-1]) == tuple(map(tuple, groups))


def test_groups_are_as_small_as_the_weights_allow():
    weights = [1240, 515, 1200, 1716, 2000, 1257, 943, 784, 425, 1904, 1824, 322]
    assert best_miss([weights], 2, max_domains=6) == 0

    groups = grouped(weights, 2, 0.0)

    assert [len(group) for group in groups] == [6, 6]
    assert worst_miss(weights, groups) == 0


@pytest.mark.parametrize("weight", [0.1, 1, 7, 1 / 3])
@pytest.mark.parametrize("num_groups", [3, 5, 7])
def test_equal_weights_divide_without_a_rounding_error(weight, num_groups):
    groups = grouped([weight] * num_groups + [0] * 2, num_groups, 0.0)
    assert_partition(groups, num_groups, num_groups + 2)


def test_the_groups_meet_the_weights_of_every_phase():
    assert grouped([1, 1, 1, 1], 2, 0.0, [[1, 0, 1, 0]]) in (((0, 1), (2, 3)), ((0, 3), (1, 2)))
    assert grouped([1, 1, 1, 1], 2, 0.0, [[1, 1, 0, 0]]) in (((0, 2), (1, 3)), ((0, 3), (1, 2)))


@given(st.lists(st.integers(50, 100), min_size=8, max_size=40), st.integers(2, 4))
def test_groups_are_even_and_every_share_is_met(weights, num_groups):
    groups = grouped(weights, num_groups, 0.05)

    assert sorted(domain for group in groups for domain in group) == list(range(len(weights)))
    assert max(map(len, groups)) - min(map(len, groups)) <= num_groups
    for group in groups:
        group_weight = sum(weights[domain] for domain in group)
        for domain in group:
            assert abs(weights[domain] / group_weight / num_groups - weights[domain] / sum(weights)) <= 0.05


def test_sigmas_forty_domains_have_four_groups_of_ten():
    rng = np.random.default_rng(0)
    weights = [Fraction(str(round(weight, 3))) for weight in rng.lognormal(0, 0.7, 40)]

    groups = grouped(weights, 4)

    assert [len(group) for group in groups] == [10] * 4
    assert groups == grouped(weights, 4)


def test_one_group_has_all_domains():
    assert grouped([5, 1], 1, 0.0) == ((0, 1),)


def test_groups_may_have_different_sizes_if_the_weights_need_it():
    assert grouped([4, 2, 1, 1], 2, 0.0) == ((0,), (1, 2, 3))


@pytest.mark.parametrize("tolerance", [0.01, 0.5, 1.0])
def test_every_group_needs_a_weight_in_every_phase_whatever_the_tolerance(tolerance):
    """Each two of three domains have a phase, so two groups cannot both have a domain in all three."""
    phases = [[1, 1, 0], [0, 1, 1]]
    assert grouped(phases[-1], 2, 1.0, phases[:-1]) == ((1,), (0, 2))

    with pytest.raises(ConfigError, match=r"phase . leaves one of 2 groups of domains .* without a weight above 0"):
        grouped([1, 0, 1], 2, tolerance, phases)


def test_domains_without_weight_are_spread():
    groups = grouped([1, 1, 0, 0], 2, 0.0)
    assert sorted(map(len, groups)) == [2, 2]


@pytest.mark.parametrize(
    ("weights", "num_groups", "words"),
    [
        (
            (4, 1, 1, 1),
            2,
            r"does not divide into 2 equal groups .*'d0', which should have 57.14% .* is off by 7.14%",
        ),
        ((1, 1, 0, 0), 3, "only 2 domains have a weight above 0"),
    ],
)
def test_weights_that_do_not_divide_are_refused(weights, num_groups, words):
    with pytest.raises(ConfigError, match=words):
        grouped(weights, num_groups)


def test_a_step_has_the_micro_batches_of_every_group_and_follows_the_weights(make_config):
    mixture = {"zh": 3.0, "en": 2.0, "code": 1.0, "bilingual": 2.0}
    config = make_config(names=("zh", "en", "code", "bilingual"), local=2, world=8, domain_groups=2, mixture=mixture)
    domains = build_domains(config)
    groups = domain_groups(config, domains)
    ((_, schedule),) = build_schedules(config, domains)
    slots_taken = [0] * 4

    for _ in range(40):
        step = schedule.step(slots_taken)
        assert len(step) == 4
        for index, slots in enumerate(step):
            assert set(slots.domain_of_slot) <= set(groups[index // 2])
            for domain in slots.domains_B().tolist():
                slots_taken[domain] += 1

    weights = np.array([mixture[domain.name] for domain in domains])
    np.testing.assert_allclose(np.array(slots_taken) / sum(slots_taken), weights / weights.sum(), atol=0.01)


def test_the_shipped_1t_configuration_is_sigmas_layout():
    """It has 4 sub-groups of 16 ranks, each with one major domain and nine others, and one expert per rank."""
    config = load_config(Path(__file__).parents[2] / "recipes" / "pangu_sigma_1t.yaml")
    domains = build_domains(config)

    groups = domain_groups(config, domains)
    mesh = Mesh.from_config(config)

    assert [len(group) for group in groups] == [10] * 4
    for group in groups:
        assert len({domains[domain].name for domain in group} & {"zh", "en", "bilingual", "code"}) == 1
    assert (mesh.size, mesh.sub_groups, mesh.members) == (512, 4, 16)
    share = ExpertShare.from_mesh(mesh, mesh.coordinates(300), groups)
    assert share.experts(16) == range(5, 6)
    assert share.tensor_slice("up", (5120, 20480)).local_shape == (5120, 2560)
