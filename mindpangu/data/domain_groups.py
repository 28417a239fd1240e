"""data.domain_groups: which domains train side by side.

Every group takes an equal part of each step's micro-batches. So a domain's share of the tokens is its share of its
group's weights, divided by the number of groups, and the weights of every phase have to divide into equal parts. On a
cluster each group is a sub-group of ranks, which store the experts of its domains and exchange tokens among themselves
alone.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from operator import itemgetter

from mindpangu.config import Config
from mindpangu.data.mixture import Phase, refuse_unmet, training_phases
from mindpangu.domains import Domain
from mindpangu.errors import ConfigError

Groups = tuple[tuple[int, ...], ...]
Weights = tuple[int, ...]
"""Of one domain, in each phase. All domains together have the same sum in every phase."""

_SHUFFLES = 20
_ALL_ASSIGNMENTS = 50_000


def domain_groups(config: Config, domains: Sequence[Domain]) -> Groups:
    """The domain ids of each of a configuration's groups, in all phases the same: where a domain's experts are stored
    does not change. Raises ConfigError for weights that cannot be met."""
    phases, names = training_phases(config, domains), [domain.name for domain in domains]
    groups = group_domains(phases, names, config.data.domain_groups, config.data.mixture_tolerance)
    for phase, group in itertools.product(phases, groups):
        weights = [phase.weights[domain] for domain in group]
        refuse_unmet(config, phase.key, [domains[domain] for domain in group], weights)
    return groups


def group_domains(phases: Sequence[Phase], names: Sequence[str], num_groups: int, tolerance: float) -> Groups:
    """The domain ids of each group; domains of weight 0 are spread over the groups.

    Groups have equally many domains, give or take one, where that meets the tolerance: a rank stores the experts of
    all its group's domains. The same weights always give the same groups.

    Args:
        phases: their weights, >= 0. names: of the domains, for messages.
        tolerance: how far a domain's share of all tokens may be from its weight's, e.g. 0.01.

    Raises:
        ConfigError: no assignment meets the tolerance; of many domains, none that was found.
    """
    if num_groups == 1:
        return (tuple(range(len(names))),)
    for phase in phases:
        trained = sum(weight > 0 for weight in phase.weights)
        if trained < num_groups:
            raise ConfigError(
                f"data.domain_groups is {num_groups}, but only {trained} domains have a weight above 0 in {phase.key}: "
                "every group needs one"
            )
    weights, tried = _exact(phases), []
    for groups in _candidates(weights, num_groups):
        tried.append((max(_worst_miss(weights, groups))[0], groups))
        if tried[-1][0] <= tolerance:
            return groups
    miss, phase, domain = max(_worst_miss(weights, min(tried)[1]))
    share = weights[domain][phase] / sum(each[phase] for each in weights)
    raise ConfigError(
        f"{phases[phase].key} does not divide into {num_groups} equal groups of domains (data.domain_groups): at best "
        f"domain {names[domain]!r}, which should have {share:.2%} of the tokens, has {miss:.2%} more or less. Change "
        f"the weights, the number of groups, or data.mixture_tolerance ({tolerance:g})"
    )


def _exact(phases: Sequence[Phase]) -> list[Weights]:
    of_phases = []
    for phase in phases:
        unit = math.lcm(*(Fraction(weight).denominator for weight in phase.weights))
        of_phases.append([int(weight * unit) for weight in phase.weights])
    total = math.lcm(*map(sum, of_phases))
    return list(zip(*([weight * (total // sum(each)) for weight in each] for each in of_phases), strict=True))


def _candidates(weights: Sequence[Weights], num_groups: int) -> Iterator[Groups]:
    """Assignments to try, even ones first: from the largest domains on, from shuffled ones, and all if they are few."""
    count = len(weights)
    for most in (-(-count // num_groups), count):
        order = sorted(range(count), key=lambda domain: [-weight for weight in weights[domain]])
        rng = random.Random(0)  # Python's own: the same on every machine
        for _ in range(1 + _SHUFFLES):
            yield _assign(weights, order, num_groups, most)
            rng.shuffle(order)
    if num_groups**count <= _ALL_ASSIGNMENTS:
        for chosen in itertools.product(range(num_groups), repeat=count):
            if len(set(chosen)) == num_groups:
                yield tuple(
                    tuple(domain for domain in range(count) if chosen[domain] == group) for group in range(num_groups)
                )


def _assign(weights: Sequence[Weights], order: Sequence[int], num_groups: int, most: int) -> Groups:
    """Each domain into the group that is lightest for it, then exchanges between two groups while one helps; at most
    `most` domains in a group."""
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    totals = [(0,) * len(weights[0])] * num_groups
    for domain in order:
        free = [group for group in range(num_groups) if len(groups[group]) < most]
        lightest = min(free, key=lambda group: (_times(totals[group], weights[domain]), len(groups[group])))
        groups[lightest].append(domain)
        totals[lightest] = tuple(map(sum, zip(totals[lightest], weights[domain], strict=True)))
    while best := min(_exchanges(weights, groups, totals, most), key=itemgetter(0), default=None):
        _, one, other, given, taken, moved = best
        for source, target, domain in ((one, other, given), (other, one, taken)):
            if domain is not None:
                groups[source].remove(domain)
                groups[target].append(domain)
        totals[one] = tuple(total - each for total, each in zip(totals[one], moved, strict=True))
        totals[other] = tuple(total + each for total, each in zip(totals[other], moved, strict=True))
    return tuple(tuple(sorted(group)) for group in groups)


def _exchanges(
    weights: Sequence[Weights], groups: list[list[int]], totals: list[Weights], most: int
) -> Iterator[tuple]:
    """(change of the sum of squared totals, group, other group, domain given, domain taken or None, what moves)."""
    nothing = (0,) * len(weights[0])
    for one, other in itertools.permutations(range(len(groups)), 2):
        room = len(groups[other]) < most and len(groups[one]) > 1
        apart = tuple(b - a for a, b in zip(totals[one], totals[other], strict=True))
        for given in groups[one]:
            for taken in (*groups[other], *([None] if room else [])):
                back = nothing if taken is None else weights[taken]
                moved = tuple(a - b for a, b in zip(weights[given], back, strict=True))
                change = 2 * (_times(moved, apart) + _times(moved, moved))
                if change < 0:
                    yield change, one, other, given, taken, moved


def _times(a: Weights, b: Weights) -> int:
    return sum(map(int.__mul__, a, b))


def _worst_miss(weights: Sequence[Weights], groups: Groups) -> list[tuple[float, int, int]]:
    """For each phase how far the share of the domain that misses its own by most is off, the phase, and the domain."""
    found = []
    for phase in range(len(weights[0])):
        of_domain = [each[phase] for each in weights]
        total, misses = sum(of_domain), []
        for group in groups:
            of_group = sum(of_domain[domain] for domain in group)
            misses += [
                (abs(of_domain[domain] / of_group / len(groups) - of_domain[domain] / total), phase, domain)
                for domain in group
                if of_domain[domain]
            ]
            if of_group == 0:  # its part of the tokens goes to nobody: the largest domain has most of what it lacks
                misses.append((1 / len(groups), phase, of_domain.index(max(of_domain))))
        found.append(max(misses))
    return found
