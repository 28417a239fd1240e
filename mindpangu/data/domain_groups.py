"""data.domain_groups: divides the domains into groups that train side by side.

Every group gets an equal share of each step's micro-batches. So a domain's share of the tokens is its share of its
group's weights, divided by the number of groups, and in every phase the groups must have equal weights. On a cluster,
each group belongs to a sub-group of ranks, which store the experts of its domains and exchange tokens only among
themselves.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from operator import itemgetter

from mindpangu.config import Config
from mindpangu.data.mixture import Phase, refuse_weights, training_phases
from mindpangu.domains import Domain
from mindpangu.errors import ConfigError

Groups = tuple[tuple[int, ...], ...]
Weights = tuple[int, ...]
"""A domain's weight in each phase. The sum over all domains is the same in every phase."""

_SHUFFLES = 20
_MAX_ASSIGNMENTS = 50_000


def domain_groups(config: Config, domains: Sequence[Domain]) -> Groups:
    """Returns the domain ids of each group. Raises ConfigError if no groups match the weights of the configuration.

    The groups are the same in all phases, because the experts of a domain do not move between ranks.
    """
    phases = training_phases(config, domains)
    names = [domain.name for domain in domains]
    groups = group_domains(phases, names, config.data.domain_groups, config.data.mixture_tolerance)
    for phase, group in itertools.product(phases, groups):
        weights = [phase.weights[domain] for domain in group]
        refuse_weights(config, phase.key, [domains[domain] for domain in group], weights)
    return groups


def group_domains(phases: Sequence[Phase], names: Sequence[str], num_groups: int, tolerance: float) -> Groups:
    """Divides domains into groups of equal weight and spreads domains of weight 0 over the groups.

    If the tolerance allows it, no group has more than ⌈domains / groups⌉ domains, because a rank stores the experts of
    all domains of its group. The same weights always give the same groups.

    Args:
        phases: the phases with their weights, >= 0.
        names: names of the domains, for messages.
        tolerance: maximum difference between a domain's share of all tokens and its share of the weights, e.g. 0.01.

    Raises:
        ConfigError: no assignment meets the tolerance or, with many domains, none was found.
    """
    if num_groups == 1:
        return (tuple(range(len(names))),)
    for phase in phases:
        trained = sum(weight > 0 for weight in phase.weights)
        if trained < num_groups:
            raise ConfigError(
                f"data.domain_groups is {num_groups}, but only {trained} domains have a weight above 0 in {phase.key}: "
                "every group needs at least one"
            )
    weights = _integer_weights(phases)
    tried = []
    for groups in _candidates(weights, num_groups):
        tried.append((max(_worst_misses(weights, groups))[0], groups))
        if tried[-1][0] <= tolerance:
            return groups
    miss, phase_index, domain = max(_worst_misses(weights, min(tried)[1]))
    if miss == math.inf:
        raise ConfigError(
            f"{phases[phase_index].key} leaves one of {num_groups} groups of domains (data.domain_groups) without a "
            "weight above 0 if the groups are to suit all phases; change the weights or the number of groups"
        )
    share = weights[domain][phase_index] / sum(each[phase_index] for each in weights)
    raise ConfigError(
        f"{phases[phase_index].key} does not divide into {num_groups} equal groups of domains (data.domain_groups): at "
        f"best, domain {names[domain]!r}, which should have {share:.2%} of the tokens, is off by {miss:.2%}. "
        f"Change the weights, the number of groups, or data.mixture_tolerance ({tolerance:g})"
    )


def _integer_weights(phases: Sequence[Phase]) -> list[Weights]:
    """Scales the weights to integers with the same sum in all phases; returns them by domain."""
    by_phase = []
    for phase in phases:
        denominator = math.lcm(*(Fraction(weight).denominator for weight in phase.weights))
        by_phase.append([int(weight * denominator) for weight in phase.weights])
    total = math.lcm(*map(sum, by_phase))
    return list(zip(*([weight * (total // sum(each)) for weight in each] for each in by_phase), strict=True))


def _candidates(weights: Sequence[Weights], num_groups: int) -> Iterator[Groups]:
    """Yields assignments to try: first those with at most ⌈domains / groups⌉ domains per group, then any.

    Each time, greedy assignments come first, followed by all assignments if there are few.
    """
    count = len(weights)
    for max_domains in (-(-count // num_groups), count):
        order = sorted(range(count), key=lambda domain: [-weight for weight in weights[domain]])
        rng = random.Random(0)  # Python's generator gives the same numbers on every machine
        for _ in range(1 + _SHUFFLES):
            yield _assign(weights, order, num_groups, max_domains)
            rng.shuffle(order)
        if num_groups**count > _MAX_ASSIGNMENTS:
            continue
        for chosen in itertools.product(range(num_groups), repeat=count):
            sizes = [chosen.count(group) for group in range(num_groups)]
            if min(sizes) > 0 and max(sizes) <= max_domains:
                yield tuple(
                    tuple(domain for domain in range(count) if chosen[domain] == group) for group in range(num_groups)
                )


def _assign(weights: Sequence[Weights], order: Sequence[int], num_groups: int, max_domains: int) -> Groups:
    """Adds each domain to the group that is lightest for it, then exchanges domains between groups while that helps.

    Args:
        order: domain ids in the order in which they are assigned.
        max_domains: maximum number of domains in a group.
    """
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    totals: list[Weights] = [(0,) * len(weights[0])] * num_groups
    for domain in order:
        free = [group for group in range(num_groups) if len(groups[group]) < max_domains]
        lightest = min(free, key=lambda group: (_dot(totals[group], weights[domain]), len(groups[group])))
        groups[lightest].append(domain)
        totals[lightest] = tuple(map(sum, zip(totals[lightest], weights[domain], strict=True)))
    while best := min(_exchanges(weights, groups, totals, max_domains), key=itemgetter(0), default=None):
        _, one, other, given, taken, moved = best
        for source, target, moving in ((one, other, given), (other, one, taken)):
            if moving is not None:
                groups[source].remove(moving)
                groups[target].append(moving)
        totals[one] = tuple(total - each for total, each in zip(totals[one], moved, strict=True))
        totals[other] = tuple(total + each for total, each in zip(totals[other], moved, strict=True))
    return tuple(tuple(sorted(group)) for group in groups)


def _exchanges(
    weights: Sequence[Weights], groups: list[list[int]], totals: list[Weights], max_domains: int
) -> Iterator[tuple[int, int, int, int, int | None, Weights]]:
    """Yields all exchanges that make the totals of two groups more equal.

    Each is (change of the sum of squared totals, group, other group, domain given, domain taken or None, weights that
    move).
    """
    nothing = (0,) * len(weights[0])
    for one, other in itertools.permutations(range(len(groups)), 2):
        room = len(groups[other]) < max_domains and len(groups[one]) > 1
        difference = tuple(b - a for a, b in zip(totals[one], totals[other], strict=True))
        for given in groups[one]:
            for taken in (*groups[other], *([None] if room else [])):
                back = nothing if taken is None else weights[taken]
                moved = tuple(a - b for a, b in zip(weights[given], back, strict=True))
                change = 2 * (_dot(moved, difference) + _dot(moved, moved))
                if change < 0:
                    yield change, one, other, given, taken, moved


def _dot(a: Weights, b: Weights) -> int:
    return sum(map(int.__mul__, a, b))


def _worst_misses(weights: Sequence[Weights], groups: Groups) -> list[tuple[float, int, int]]:
    """Finds the domain that is furthest from its share of the tokens in each phase: (miss, phase index, domain id).

    The miss is infinite if a group has no weight in a phase.
    """
    found = []
    for phase in range(len(weights[0])):
        domain_weights = [each[phase] for each in weights]
        total = sum(domain_weights)
        misses = []
        for group in groups:
            group_weight = sum(domain_weights[domain] for domain in group)
            for domain in group:
                weight = domain_weights[domain]
                if weight:
                    # |weight / (group_weight · groups) − weight / total|, rounded only once: a miss equal to the
                    # tolerance must not exceed it
                    denominator = group_weight * len(groups)
                    miss = weight * abs(denominator - total) / (denominator * total)
                    misses.append((miss, phase, domain))
            if group_weight == 0:  # nothing to train on, which no tolerance allows
                misses.append((math.inf, phase, group[0]))
        found.append(max(misses))
    return found
