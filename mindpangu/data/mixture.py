"""Assigns domains to slots, one turn after another, so that their shares follow the mixture weights.

`schedule.py` defines a turn: a step with its domain slots, or a micro-batch with its samples as slots.

This is proportionate-progress scheduling: slots are processors, domains are tasks, and a domain's share of the slots is
its utilisation. The rule is PD² (Anderson & Srinivasan 2000, after Baruah et al. 1996), which provably keeps every
domain less than one slot away from its exact share after every turn. "Largest deficit first" does not: with
a dozen domains it deviates by more. All arithmetic is exact (integers), and the only state is the number of slots
taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mindpangu.config import Config
from mindpangu.domains import Domain, trained_domains
from mindpangu.errors import ConfigError


class Mixture:
    """Chooses the domains of each turn.

    A domain gets its share of a turn's slots, rounded down or up. So if no share exceeds one slot, the domains of a
    turn are distinct.

    Args:
        weights: relative weight of each domain, >= 0, not all 0.
        num_slots: number of slots per turn.
    """

    def __init__(self, weights: Sequence[Fraction | int], num_slots: int):
        exact = [Fraction(weight) for weight in weights]
        total = sum(exact, Fraction(0))
        shares = [weight * num_slots / total for weight in exact]  # slots per turn
        self._num_slots = num_slots
        self._whole = [math.floor(share) for share in shares]
        self._period = math.lcm(*(share.denominator for share in shares))
        # rest of a share: slots per _period turns
        self._fraction = [int((share % 1) * self._period) for share in shares]
        self._floating_slots = num_slots - sum(self._whole)

    def next_slots(self, slots_taken: Sequence[int]) -> tuple[int, ...]:
        """Returns the domain of each slot of the next turn, ascending.

        Args:
            slots_taken: number of slots that each domain has had so far.
        """
        time = sum(slots_taken) // self._num_slots
        chosen = [domain for domain, whole in enumerate(self._whole) for _ in range(whole)]
        if self._floating_slots:
            candidates = sorted(
                self._priority(domain, taken - self._whole[domain] * time, time)
                for domain, taken in enumerate(slots_taken)
                if self._fraction[domain]
            )
            chosen += [candidate[-1] for candidate in candidates[: self._floating_slots]]
        return tuple(sorted(chosen))

    def _priority(self, domain: int, taken: int, time: int) -> tuple[bool, int, bool, int, int]:
        """Returns the PD² priority of the domain's next subtask, its slot with index `taken`. The smallest comes first.

        A subtask may run at any time from its release up to its deadline. The order is: released before unreleased;
        the earlier deadline; a window that overlaps the next one's; the later group deadline, which ends the cascade of
        heavy subtasks (share >= 1/2) that would be forced if this one ran last.
        """
        period = self._period
        fraction = self._fraction[domain]
        release = taken * period // fraction
        deadline = _ceil_divide((taken + 1) * period, fraction)
        overlaps = (taken + 1) * period % fraction != 0
        group_deadline = 0
        if 2 * fraction >= period:
            idle = period - fraction
            group_deadline = _ceil_divide(_ceil_divide(deadline * idle, period) * period, idle)
        return release > time, deadline, not overlaps, -group_deadline, domain


@dataclass(frozen=True)
class Phase:
    """A span of steps with its own mixture weights.

    Attributes:
        key: configuration key of the weights.
        first_step: index of its first step, counted from 0.
        weights: exact weight of each domain.
    """

    key: str
    first_step: int
    weights: tuple[Fraction, ...]


def training_phases(config: Config, domains: Sequence[Domain]) -> list[Phase]:
    """Returns the phases of data.phases, followed by the phase of data.mixture.

    Raises:
        ConfigError: a weight is missing (in data.mixture), negative, or not finite; all weights are 0; or a domain that
            training.train leaves out has a weight above 0.
    """
    phases = []
    first_step = 0
    for index, section in enumerate(config.data.phases):
        key = f"data.phases[{index}].mixture"
        mixture = section.mixture and dict.fromkeys((domain.name for domain in domains), 0.0) | section.mixture
        phases.append(Phase(key, first_step, _weights(key, mixture, domains)))
        first_step += section.steps
    phases.append(Phase("data.mixture", first_step, _weights("data.mixture", config.data.mixture, domains)))
    trained = trained_domains(config, domains)
    if trained is not None:
        for phase in phases:
            _refuse_frozen(config, phase, domains, trained)
    return phases


def domains_in_use(config: Config, domains: Sequence[Domain]) -> frozenset[int]:
    """Returns the ids of the domains with a weight above 0 in some phase, whose text is therefore needed."""
    phases = training_phases(config, domains)
    return frozenset(domain for phase in phases for domain, weight in enumerate(phase.weights) if weight > 0)


def _refuse_frozen(config: Config, phase: Phase, domains: Sequence[Domain], trained: frozenset[int]) -> None:
    for index, (domain, weight) in enumerate(zip(domains, phase.weights, strict=True)):
        if weight > 0 and index not in trained:
            raise ConfigError(
                f"{phase.key} gives domain {domain.name!r} a weight, but training.train is {config.training.train!r}: "
                "its steps would change nothing. Give it the weight 0, or train it as well"
            )


def _weights(key: str, mixture: Mapping[str, float], domains: Sequence[Domain]) -> tuple[Fraction, ...]:
    if not mixture:
        return (Fraction(1),) * len(domains)
    weights = []
    for domain in domains:
        weight = mixture.get(domain.name)
        if weight is None:
            raise ConfigError(f"{key} has no weight for domain {domain.name!r}; give one (0: not trained)")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{key}.{domain.name} is {weight}; allowed: >= 0 and finite")
        weights.append(Fraction(str(weight)))  # the decimal number the user wrote, not its binary neighbour
    if sum(weights) == 0:
        raise ConfigError(f"{key} gives every domain the weight 0; allowed: at least one above 0")
    return tuple(weights)


def refuse_weights(config: Config, key: str, domains: Sequence[Domain], weights: Sequence[Fraction]) -> None:
    """Raises ConfigError for weights that data.schedule cannot follow in a group of domains.

    With the rotating schedule, no share may exceed 1 / data.domains_per_step, because the domains of a step are
    distinct if there are enough. With the mixed one, a micro-batch may not have more domains than
    data.domains_per_step.
    """
    if config.data.schedule == "mixed":
        _refuse_too_few_slots(config, weights)
    else:
        _refuse_large_shares(config, key, domains, weights)


def _refuse_large_shares(config: Config, key: str, domains: Sequence[Domain], weights: Sequence[Fraction]) -> None:
    num_slots = config.data.domains_per_step
    total = sum(weights)
    if sum(weight > 0 for weight in weights) < num_slots:
        return
    for domain, weight in zip(domains, weights, strict=True):
        if weight * num_slots > total:
            raise ConfigError(
                f"{key} gives domain {domain.name!r} {float(weight / total):.1%} of the tokens, but it can "
                f"fill only one of the {num_slots} slots of a step ({1 / num_slots:.1%}); lower its weight or "
                "data.domains_per_step, or set data.schedule to mixed"
            )


def _refuse_too_few_slots(config: Config, weights: Sequence[Fraction]) -> None:
    num_slots = config.data.domains_per_step
    local = config.training.local_batch_size
    positive = sum(weight > 0 for weight in weights)
    needed = min(positive, local)
    if num_slots < needed:
        raise ConfigError(
            f"data.domains_per_step is {num_slots}, but with data.schedule mixed a micro-batch may need {needed} slots "
            f"({positive} domains have a weight above 0, training.local_batch_size is {local}); set "
            f"data.domains_per_step to {needed}, or data.schedule to rotating"
        )


def _ceil_divide(numerator: int, period: int) -> int:
    return -(-numerator // period)
