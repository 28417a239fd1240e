"""data.domain_groups: which domains train side by side.

Every group takes an equal part of each step's micro-batches. So a domain's share of the tokens is its share of its
group's weights, divided by the number of groups, and the weights of every phase have to divide into equal parts. On a
cluster each group is a sub-group of ranks, which store the experts of its domains and exchange tokens among themselves
alone.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from operator import itemgetter

from mindpangu.config import Config
from mindpangu.data.mixture import refuse_unmet, training_phases
from mindpangu.domains import Domain
from mindpangu.errors import ConfigError

Groups = tuple[tuple[int, ...], ...]


def domain_groups(config: Config, domains: Sequence[Domain]) -> Groups:
    """The domain ids of each of a configuration's groups, in all phases the same: where a domain's experts are stored
    does not change. Raises ConfigError for weights that cannot be met."""
    *phases, last = training_phases(config, domains)
    names, tolerance = [domain.name for domain in domains], config.data.mixture_tolerance
    groups = group_domains(last.weights, names, config.data.domain_groups, tolerance)
    for phase in phases:
        _refuse_uneven(phase.key, _whole(phase.weights), names, groups, tolerance)
    for phase, group in itertools.product((*phases, last), groups):
        weights = [phase.weights[domain] for domain in group]
        refuse_unmet(config, phase.key, [domains[domain] for domain in group], weights)
    return groups


def group_domains(weights: Sequence[Fraction], names: Sequence[str], num_groups: int, tolerance: float) -> Groups:
    """The domain ids of each group; domains of weight 0 are spread over the groups.

    Groups have equally many domains, give or take one, where that meets the tolerance: a rank stores the experts of
    all its group's domains. The same weights always give the same groups.

    Args:
        weights: of each domain, >= 0. names: of the domains, for messages.
        tolerance: how far a domain's share of all tokens may be from its weight's, e.g. 0.01.

    Raises:
        ConfigError: no assignment that was found meets the tolerance.
    """
    if num_groups == 1:
        return (tuple(range(len(weights))),)
    trained = sum(weight > 0 for weight in weights)
    if trained < num_groups:
        raise ConfigError(
            f"data.domain_groups is {num_groups}, but only {trained} domains have a weight above 0: every group needs "
            "one"
        )
    exact = _whole(weights)
    even = -(-len(exact) // num_groups)
    found = [_assign(exact, num_groups, most) for most in (even, len(exact))]
    best = min(found, key=lambda groups: max(_worst_miss(exact, groups)[0], tolerance))  # even groups if both meet it
    _refuse_uneven("data.mixture", exact, names, best, tolerance)
    return best


def _whole(weights: Sequence[Fraction]) -> list[int]:
    unit = math.lcm(*(Fraction(weight).denominator for weight in weights))
    return [int(weight * unit) for weight in weights]


def _refuse_uneven(key: str, weights: Sequence[int], names: Sequence[str], groups: Groups, tolerance: float) -> None:
    miss, domain = _worst_miss(weights, groups) if len(groups) > 1 else (0.0, 0)
    if miss > tolerance:
        raise ConfigError(
            f"{key} does not divide into {len(groups)} equal groups of domains (data.domain_groups): domain "
            f"{names[domain]!r}, which should have {weights[domain] / sum(weights):.2%} of the tokens, has {miss:.2%} "
            f"more or less. Change the weights, the number of groups, or data.mixture_tolerance ({tolerance:g})"
        )


def _assign(weights: Sequence[int], num_groups: int, most: int) -> Groups:
    """Largest first into the lightest group, then exchanges between two groups while one helps; at most `most` domains
    in a group."""
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    totals = [0] * num_groups
    for domain in sorted(range(len(weights)), key=lambda domain: -weights[domain]):
        free = [group for group in range(num_groups) if len(groups[group]) < most]
        lightest = min(free, key=lambda group: (totals[group], len(groups[group])))
        groups[lightest].append(domain)
        totals[lightest] += weights[domain]
    while best := min(_exchanges(weights, groups, totals, most), key=itemgetter(0), default=None):
        _, one, other, given, taken = best
        for source, target, domain in ((one, other, given), (other, one, taken)):
            if domain is not None:
                groups[source].remove(domain)
                groups[target].append(domain)
                totals[source] -= weights[domain]
                totals[target] += weights[domain]
    return tuple(tuple(sorted(group)) for group in groups)


def _exchanges(weights: Sequence[int], groups: list[list[int]], totals: list[int], most: int) -> Iterator[tuple]:
    """(change of the sum of squared totals, group, other group, domain given, domain taken or None)."""
    for one, other in itertools.permutations(range(len(groups)), 2):
        room = len(groups[other]) < most and len(groups[one]) > 1
        for given in groups[one]:
            for taken in (*groups[other], *([None] if room else [])):
                moved = weights[given] - (0 if taken is None else weights[taken])
                change = 2 * moved * (totals[other] - totals[one] + moved)
                if change < 0:
                    yield change, one, other, given, taken


def _worst_miss(weights: Sequence[int], groups: Groups) -> tuple[float, int]:
    """How far the share of the domain that misses its own by most is off, and which it is."""
    total, misses = sum(weights), []
    for group in groups:
        of_group = sum(weights[domain] for domain in group)
        if of_group == 0:
            return 1.0, group[0]
        misses += [
            (abs(weights[domain] / of_group / len(groups) - weights[domain] / total), domain) for domain in group
        ]
    return max(misses)
