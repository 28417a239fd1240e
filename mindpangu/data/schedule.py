"""data.schedule: chooses the domains of the samples of a step, and their domain slots.

Both schedules follow a phase's weights by PD² (`mixture.py`), separately in each group of domains, and are pure
functions of the samples taken since the phase began:

    rotating    chooses a domain per slot of a step, the same for all micro-batches of all ranks
    mixed       chooses a domain per sample: as many domains as the weights require, in slots of any size
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
    """The domains of one micro-batch. The fields have the same meaning as in `Batch`."""

    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: npt.NDArray[np.int32]

    def domains_B(self) -> npt.NDArray[np.int64]:
        """Returns the domain id of each sample."""
        return np.array(self.domain_of_slot)[self.slot_of_sample_B]


class Schedule(Protocol):
    """Interface of the schedules.

    Attributes:
        samples_per_choice: number of samples that follow one choice of a domain; counts in a loader state are
            multiples of it.
    """

    samples_per_choice: int

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        """Returns the micro-batches of the next step.

        Args:
            samples_taken: number of samples of each domain since the phase began."""


def build_schedules(config: Config, domains: Sequence[Domain]) -> list[tuple[int, Schedule]]:
    """Builds (first step, schedule) for each phase. Raises ConfigError if the schedule cannot follow the mixture."""
    groups = domain_groups(config, domains)
    return [(phase.first_step, _build(config, groups, phase.weights)) for phase in training_phases(config, domains)]


def _build(config: Config, groups: Groups, weights: Sequence[Fraction]) -> Schedule:
    local = config.training.local_batch_size
    slots = config.data.domains_per_step
    micro_batches = config.training.global_batch_size // local // len(groups)
    kind = Mixed if config.data.schedule == "mixed" else Rotating
    weights_of_groups = [[weights[domain] for domain in group] for group in groups]
    return SideBySide(groups, [kind(group_weights, local, slots, micro_batches) for group_weights in weights_of_groups])


class SideBySide:
    """Runs one schedule per group of domains; the micro-batches of a group are adjacent in the step."""

    def __init__(self, groups: Groups, schedules: Sequence[Schedule]):
        self._groups = groups
        self._schedules = schedules
        self.samples_per_choice = schedules[0].samples_per_choice

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        return [
            DomainSlots(tuple(group[domain] for domain in slots.domain_of_slot), slots.slot_of_sample_B)
            for group, schedule in zip(self._groups, self._schedules, strict=True)
            for slots in schedule.step([samples_taken[domain] for domain in group])
        ]


class Rotating:
    """Chooses the domains once per step; they fill equal parts of each micro-batch."""

    def __init__(self, weights: Sequence[Fraction], local_batch_size: int, num_slots: int, micro_batches: int):
        self._mixture = Mixture(weights, num_slots)
        self._slot_of_sample_B = equal_parts(local_batch_size, num_slots)
        self._micro_batches = micro_batches
        self.samples_per_choice = micro_batches * local_batch_size // num_slots

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        domain_of_slot = self._mixture.next_slots([taken // self.samples_per_choice for taken in samples_taken])
        return [DomainSlots(domain_of_slot, self._slot_of_sample_B)] * self._micro_batches


class Mixed:
    """Chooses the domain of every sample by the weights.

    The samples of a micro-batch are ordered by domain, and its domains take the slots in ascending order. An unused
    slot repeats the last domain: its experts are needed anyway, so the slot moves no additional bytes.
    """

    samples_per_choice = 1

    def __init__(self, weights: Sequence[Fraction], local_batch_size: int, num_slots: int, micro_batches: int):
        self._mixture = Mixture(weights, local_batch_size)
        self._num_slots = num_slots
        self._micro_batches = micro_batches

    def step(self, samples_taken: Sequence[int]) -> list[DomainSlots]:
        taken = np.array(samples_taken)
        result = []
        for _ in range(self._micro_batches):
            domains_B = self._mixture.next_slots(taken.tolist())
            used, slot_of_sample_B = np.unique(domains_B, return_inverse=True)
            unused = (int(used[-1]),) * (self._num_slots - len(used))
            result.append(DomainSlots((*used.tolist(), *unused), slot_of_sample_B.astype(np.int32)))
            taken += np.bincount(domains_B, minlength=len(taken))
        return result
