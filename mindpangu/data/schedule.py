"""data.schedule: which domains the samples of a step belong to, and through which domain slots they enter it.

Both schedules follow a phase's weights by PD² (`mixture.py`), in each of data.domain_groups by itself, and are pure
functions of the samples taken since the phase began:

    rotating    the unit is a slot of a step: the step's domains are chosen once, for all its micro-batches and replicas
    mixed       the unit is a sample of a micro-batch: as many domains as the weights ask for, in slots of any size
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mindpangu.config import Config
from mindpangu.data.batch import equal_parts
from mindpangu.data.domain_groups import Groups, domain_groups
from mindpangu.data.mixture import Mixture, training_phases
from mindpangu.domains import Domain


@dataclass(frozen=True)
class DomainSlots:
    """The domains of one micro-batch; the fields are those of `Batch`."""

    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: npt.NDArray[np.int32]

    def domains_B(self) -> npt.NDArray[np.int64]:
        """The domain of each sample."""
        return np.array(self.domain_of_slot)[self.slot_of_sample_B]


class Schedule(Protocol):
    """What the loader asks.

    Attributes:
        unit: samples that a domain takes at once in a step; a loader state counts multiples of it.
    """

    unit: int

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        """The micro-batches of the step that begins when each domain has given so many samples of the phase."""


def build_schedules(config: Config, domains: Sequence[Domain]) -> list[tuple[int, Schedule]]:
    """(first step, data.schedule) of each phase. Raises ConfigError for a mixture that it cannot follow."""
    groups = domain_groups(config, domains)
    return [(phase.first_step, _build(config, groups, phase.weights)) for phase in training_phases(config, domains)]


def _build(config: Config, groups: Groups, weights: Sequence[Fraction]) -> Schedule:
    local, slots = config.training.local_batch_size, config.data.domains_per_step
    micro_batches = config.training.global_batch_size // local // len(groups)
    kind = Mixed if config.data.schedule == "mixed" else Rotating
    return SideBySide(
        groups, [kind([weights[domain] for domain in group], local, slots, micro_batches) for group in groups]
    )


class SideBySide:
    """Every group of domains has a schedule of its own; its micro-batches stand together in the step."""

    def __init__(self, groups: Groups, schedules: Sequence[Schedule]):
        self._groups, self._schedules = groups, schedules
        self.unit = schedules[0].unit

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        return [
            DomainSlots(tuple(group[domain] for domain in slots.domain_of_slot), slots.slot_of_sample_B)
            for group, schedule in zip(self._groups, self._schedules, strict=True)
            for slots in schedule.step([samples_taken[domain] for domain in group])
        ]


class Rotating:
    """Every step has one choice of domains, in equal parts of each of its micro-batches."""

    def __init__(self, weights: Sequence, local_batch_size: int, num_slots: int, micro_batches: int):
        self._mixture = Mixture(weights, num_slots)
        self._slot_of_sample_B = equal_parts(local_batch_size, num_slots)
        self._micro_batches = micro_batches
        self.unit = micro_batches * local_batch_size // num_slots

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        domain_of_slot = self._mixture.next_slots([taken // self.unit for taken in samples_taken])
        return [DomainSlots(domain_of_slot, self._slot_of_sample_B)] * self._micro_batches


class Mixed:
    """Every sample's domain follows the weights; a micro-batch is ordered by domain, and its domains take the slots in
    ascending order. A slot that is left repeats the last domain: its experts are needed anyway, so an unused slot
    brings no bytes to the step."""

    unit = 1

    def __init__(self, weights: Sequence, local_batch_size: int, num_slots: int, micro_batches: int):
        self._mixture = Mixture(weights, local_batch_size)
        self._num_slots, self._micro_batches = num_slots, micro_batches

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        taken, result = np.array(samples_taken), []
        for _ in range(self._micro_batches):
            domains_B = self._mixture.next_slots(taken.tolist())
            used, slot_of_sample_B = np.unique(domains_B, return_inverse=True)
            unused = (int(used[-1]),) * (self._num_slots - len(used))
            result.append(DomainSlots((*used.tolist(), *unused), slot_of_sample_B.astype(np.int32)))
            taken += np.bincount(domains_B, minlength=len(taken))
        return result
