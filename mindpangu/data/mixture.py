"""Which domain fills which slot, round after round, so that the shares follow the mixture weights.

A round is what `schedule.py` makes it: a step with its domain slots, or a micro-batch with its samples for slots.

This is proportionate-progress scheduling: slots are processors, domains are tasks, a domain's share of the slots is its
utilisation. The rule is PD² (Anderson & Srinivasan 2000, after Baruah et al. 1996), which is proven to keep every
domain less than one slot away from its exact share after every round. Largest deficit first does not: with a dozen
domains it strays further. All arithmetic is exact (integers), and the only state is the slots taken so far.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mindpangu.config import Config
from mindpangu.domains import Domain, trained_domains
from mindpangu.errors import ConfigError


class Mixture:
    """The order of the domains.

    A domain gets its share of a round's slots, rounded down or up; so where no share is above one slot, the domains of
    a round are distinct.

    Args:
        weights: relative weight of each domain, >= 0, not all 0.
        num_slots: slots of a round.
    """

    def __init__(self, weights: Sequence[Fraction | int], num_slots: int):
        weights = [Fraction(weight) for weight in weights]
        shares = [weight * num_slots / sum(weights) for weight in weights]  # slots in a round
        self._num_slots = num_slots
        self._whole = [math.floor(share) for share in shares]
        self._unit = math.lcm(*(share.denominator for share in shares))
        self._part = [int((share % 1) * self._unit) for share in shares]  # what is left of a share, in 1 / _unit slots
        self._floating_slots = num_slots - sum(self._whole)

    def next_slots(self, slots_taken: Sequence[int]) -> tuple[int, ...]:
        """The domain of each slot of the next round, ascending.

        Args:
            slots_taken: how many slots each domain has had since the start.
        """
        time = sum(slots_taken) // self._num_slots
        chosen = [domain for domain, whole in enumerate(self._whole) for _ in range(whole)]
        if self._floating_slots:
            candidates = sorted(
                self._priority(domain, taken - self._whole[domain] * time, time)
                for domain, taken in enumerate(slots_taken)
                if self._part[domain]
            )
            chosen += [candidate[-1] for candidate in candidates[: self._floating_slots]]
        return tuple(sorted(chosen))

    def _priority(self, domain: int, taken: int, time: int) -> tuple[bool, int, bool, int, int]:
        """PD²'s order, smallest first, for the domain's next subtask (its slot number `taken`), which may run at any
        time from its release up to its deadline: released before unreleased; earlier deadline; then the one whose
        window overlaps its successor's; then the later group deadline, up to which a cascade of heavy subtasks
        (share >= 1/2) would be forced if this one ran last."""
        unit, part = self._unit, self._part[domain]
        release = taken * unit // part
        deadline = _ceil_divide((taken + 1) * unit, part)
        overlaps = (taken + 1) * unit % part != 0
        group_deadline = 0
        if 2 * part >= unit:
            group_deadline = _ceil_divide(_ceil_divide(deadline * (unit - part), unit) * unit, unit - part)
        return release > time, deadline, not overlaps, -group_deadline, domain


@dataclass(frozen=True)
class Phase:
    """A part of the training with weights of its own.

    Attributes:
        key: where the configuration has them. first_step: steps before it. weights: exact, one a domain.
    """

    key: str
    first_step: int
    weights: tuple[Fraction, ...]


def training_phases(config: Config, domains: Sequence[Domain]) -> list[Phase]:
    """Those of data.phases, and then that of data.mixture.

    Raises:
        ConfigError: a weight that is missing (in data.mixture), negative or not finite, all weights 0, or one above 0
            for a domain that training.train leaves out.
    """
    found, first_step = [], 0
    for index, phase in enumerate(config.data.phases):
        key = f"data.phases[{index}].mixture"
        mixture = phase.mixture and dict.fromkeys((domain.name for domain in domains), 0.0) | phase.mixture
        found.append(Phase(key, first_step, _weights(key, mixture, domains)))
        first_step += phase.steps
    found.append(Phase("data.mixture", first_step, _weights("data.mixture", config.data.mixture, domains)))
    trained = trained_domains(config, domains)
    for phase in found if trained is not None else ():
        _refuse_frozen(config, phase, domains, trained)
    return found


def domains_in_use(config: Config, domains: Sequence[Domain]) -> frozenset[int]:
    """Ids of the domains with a weight above 0 in some phase: those whose text is needed."""
    phases = training_phases(config, domains)
    return frozenset(domain for phase in phases for domain, weight in enumerate(phase.weights) if weight > 0)


def _refuse_frozen(config: Config, phase: Phase, domains: Sequence[Domain], trained: frozenset[int]) -> None:
    for index, (domain, weight) in enumerate(zip(domains, phase.weights, strict=True)):
        if weight > 0 and index not in trained:
            raise ConfigError(
                f"{phase.key} gives domain {domain.name!r} a weight, but training.train is {config.training.train!r}: "
                f"its steps would change nothing. Give it the weight 0, or train it as well"
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


def refuse_unmet(config: Config, key: str, domains: Sequence[Domain], weights: Sequence[Fraction]) -> None:
    """Raises ConfigError for weights that data.schedule cannot follow, in a group of domains that train side by side.

    rotating: a share above 1 / data.domains_per_step, as the domains of a step are distinct where there are enough;
    mixed: more domains in a micro-batch than data.domains_per_step.
    """
    if config.data.schedule == "mixed":
        _refuse_too_few_slots(config, weights)
    else:
        _refuse_large_shares(config, key, domains, weights)


def _refuse_large_shares(config: Config, key: str, domains: Sequence[Domain], weights: Sequence[Fraction]) -> None:
    num_slots, total = config.data.domains_per_step, sum(weights)
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
    num_slots, local = config.data.domains_per_step, config.training.local_batch_size
    positive = sum(weight > 0 for weight in weights)
    needed = min(positive, local)
    if num_slots < needed:
        raise ConfigError(
            f"data.domains_per_step is {num_slots}, but with data.schedule mixed a micro-batch may need {needed} slots "
            f"({positive} domains have a weight above 0, training.local_batch_size is {local}); set "
            f"data.domains_per_step to {needed}, or data.schedule to rotating"
        )


def _ceil_divide(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
