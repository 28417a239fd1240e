"""Groups of domains that train in parallel: equal weights, the tolerance, and a schedule that follows the weights."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import load_config
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
    group_weights = [sum(weights[domain] for domain in group) for group in groups]
    if not all(group_weights):
        return 1.0
    return max(
        abs(weights[domain] / group_weight / len(groups) - weights[domain] / sum(weights))
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
    possible = any(all(worst_miss(phase, groups) <= tolerance for phase in phases) for groups in assignments)

    if possible:
        groups = grouped(phases[-1], num_groups, tolerance, phases[:-1])
        assert all(worst_miss(phase, groups) <= tolerance for phase in phases)
    else:
        with pytest.raises(ConfigError, match=r"data\.domain_groups"):
            grouped(phases[-1], num_groups, tolerance, phases[:-1])


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
