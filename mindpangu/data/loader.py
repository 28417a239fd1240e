"""The endless, shuffled, mixed training stream, and the held-out samples of one domain.

The training stream depends only on the shards, data.schedule, the mixture, data.seed, and the batch sizes. A step has
global_batch_size / local_batch_size micro-batches, which `step_planner.py` assigns to ranks. So a step has the same
samples for any number of ranks.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import ge, itemgetter
from typing import Annotated, TypeGuard

import numpy as np

from mindpangu.config import Config
from mindpangu.data.batch import Batch, assemble_batch, equal_parts
from mindpangu.data.mixture import domains_in_use
from mindpangu.data.samples import Sample, Samples
from mindpangu.data.schedule import DomainSlots, Schedule, build_schedules
from mindpangu.data.shards import TokenShards
from mindpangu.data.shuffle import SampleOrder
from mindpangu.data.split import HELDOUT, TRAIN
from mindpangu.domains import Domain
from mindpangu.errors import DataError
from mindpangu.untrusted import DIGEST, Count

LoaderState = dict[str, list[int] | int | str]
"""State of a loader as JSON. samples_taken: number of training samples of each domain that all ranks together have
used; phase_began, if data.phases is set: the same number at the start of the current phase. Further rounds of a
training run have a state of their own (`replay.py`)."""


@dataclass(frozen=True)
class SavedLoaderState:
    """A loader state as it is saved in a file. Fields that the state does not have are None."""

    samples_taken: list[Count] | None = None
    phase_began: list[Count] | None = None
    round: Count | None = None
    batch: Count | None = None
    sample: Annotated[str, DIGEST] | None = None

    def __post_init__(self) -> None:
        if not self.to_state():
            raise ValueError("it is empty; allowed: samples_taken, or round, batch, and sample")
        if self.round is not None and (self.batch is None or self.sample is None):
            raise ValueError("it has round, but not both batch and sample")

    def to_state(self) -> LoaderState:
        """Returns the state as `Loader.load_state` takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of all ranks in one step.

    Attributes:
        micro_batches: global_batch_size / local_batch_size batches; those of a group of domains are adjacent.
        next_state: the loader's state after this step. A checkpoint of the step saves it, even if the loader has
            already produced later steps.
    """

    micro_batches: tuple[Batch, ...]
    next_state: LoaderState


class Loader:
    """The training stream. Its state is the number of samples taken from each domain, in total and before this phase.

    Args:
        shards: the token shards.
        domains: the run's domains, which must be the same as those of the shards.
        config: a resolved configuration.
        state: the state to continue from (`state` or `StepBatches.next_state`); None starts at the beginning.

    Raises:
        DataError: the domains differ from the shards', a domain has less than one sample, or the state does not fit.
        ConfigError: the schedule cannot follow the mixture weights.
    """

    def __init__(
        self,
        shards: TokenShards,
        domains: Sequence[Domain],
        config: Config,
        state: LoaderState | None = None,
    ):
        names = tuple(domain.name for domain in domains)
        if names != shards.domain_names:
            raise DataError(
                f"token shards in {shards.folder} have the domains {', '.join(shards.domain_names)}, this run has "
                f"{', '.join(names)}; prepare the data again (`mindpangu data prepare`)"
            )
        self._shards = shards
        self._config = config
        self._schedules = build_schedules(config, domains)
        self._samples = {
            domain: _samples_of(shards, names[domain], TRAIN, config.model.seq_length)
            for domain in domains_in_use(config, domains)
        }
        self._orders = {
            domain: SampleOrder(len(samples), config.data.seed, names[domain])
            for domain, samples in self._samples.items()
        }
        self._samples_taken = [0] * len(names)
        self._phase_began = [0] * len(names)
        if state is not None:
            self.load_state(state)

    def next_step(self) -> StepBatches:
        """Returns the micro-batches of the next step and moves the state past it."""
        micro_batches = tuple(self._batch(slots) for slots in self._slots_of_step())
        return StepBatches(micro_batches, self.state())

    def skip_step(self) -> None:
        """Moves the state past the next step without reading its samples."""
        for _ in self._slots_of_step():
            pass

    def _slots_of_step(self) -> Iterator[DomainSlots]:
        """Yields the slots of the next step's micro-batches. Moves the state past each when the next is requested."""
        first_step, schedule = self._phase(self._samples_taken)
        if sum(self._samples_taken) == first_step * self._config.training.global_batch_size:
            self._phase_began = list(self._samples_taken)
        taken_in_phase = [taken - began for taken, began in zip(self._samples_taken, self._phase_began, strict=True)]
        for slots in schedule.step(taken_in_phase):
            yield slots
            for domain in slots.domains_B().tolist():
                self._samples_taken[domain] += 1

    def state(self) -> LoaderState:
        """Returns the position in the stream as a few integers that JSON can hold."""
        state: LoaderState = {"samples_taken": list(self._samples_taken)}
        return state | {"phase_began": list(self._phase_began)} if self._config.data.phases else state

    def load_state(self, state: LoaderState) -> None:
        """Continues from a state. Raises DataError if it does not fit this run's domains and batch sizes."""
        if "round" in state:
            raise DataError(
                f"this training is in round {state['round']} of several; continue with `mindpangu tiny rounds`"
            )
        taken = state.get("samples_taken")
        began = state.get("phase_began", [0] * len(self._samples_taken))
        samples_per_choice = self._schedules[0][1].samples_per_choice
        per_step = self._config.training.global_batch_size
        if not (self._are_counts(taken) and self._are_counts(began) and self._began_phase_of(began, taken)):
            raise DataError(
                f"loader state {dict(state)} does not fit {len(self._samples_taken)} domains, parts of "
                f"{samples_per_choice} samples and steps of {per_step}; resume with the domains, schedule and batch "
                "sizes of the run that saved it"
            )
        self._samples_taken = list(taken)
        self._phase_began = list(began)

    def _phase(self, taken: Sequence[int]) -> tuple[int, Schedule]:
        """Returns (first step, schedule) of the phase of the step that starts after `taken` samples."""
        step = sum(taken) // self._config.training.global_batch_size
        return self._schedules[bisect.bisect_right(self._schedules, step, key=itemgetter(0)) - 1]

    def _are_counts(self, samples: object) -> TypeGuard[list[int]]:
        """True if these can be the numbers of samples taken from each domain after some step."""
        samples_per_choice = self._schedules[0][1].samples_per_choice
        return (
            isinstance(samples, list)
            and len(samples) == len(self._samples_taken)
            and all(type(count) is int and count >= 0 and count % samples_per_choice == 0 for count in samples)
            and sum(samples) % self._config.training.global_batch_size == 0
        )

    def _began_phase_of(self, began: list[int], taken: list[int]) -> bool:
        """True if the phase of the last step before `taken` can have begun at `began`."""
        first_step, _ = self._phase([max(0, sum(taken) - 1)])
        return sum(began) == first_step * self._config.training.global_batch_size and all(map(ge, taken, began))

    def _batch(self, slots: DomainSlots) -> Batch:
        config = self._config
        domains_B = slots.domains_B()
        sample_ids_B2 = np.empty((len(domains_B), 2), np.int64)
        sample_ids_B2[:, 0] = domains_B
        for domain in np.unique(domains_B).tolist():  # a domain may fill two slots
            rows = domains_B == domain
            sample_ids_B2[rows, 1] = self._orders[domain].indices(self._samples_taken[domain], int(rows.sum()))
        samples = [self._samples[domain][index] for domain, index in sample_ids_B2.tolist()]
        return _assemble(self._shards, config, samples, sample_ids_B2, slots)


def heldout_batches(shards: TokenShards, domain_name: str, config: Config, batch_size: int) -> Iterator[Batch]:
    """Yields the held-out samples of one domain in order, at most monitor.heldout_samples of them.

    The last batch is padded with samples with a loss mask of 0. So models with different batch sizes are measured on
    the same text, and models with different tokenizers too, except for a tail that does not fill a sample. All slots of
    a batch have the same domain and equally many samples.

    Raises:
        DataError: the held-out split does not fill one sample.
    """
    domain = shards.domain_names.index(domain_name)
    samples = _samples_of(shards, domain_name, HELDOUT, config.model.seq_length)
    count = min(len(samples), config.monitor.heldout_samples)
    num_slots = config.data.domains_per_step
    slots = DomainSlots((domain,) * num_slots, equal_parts(batch_size, num_slots))
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        sample_ids_B2 = np.full((batch_size, 2), (domain, -1), np.int64)
        sample_ids_B2[: len(indices), 1] = indices
        yield _assemble(shards, config, [samples[index] for index in indices], sample_ids_B2, slots)


def _assemble(
    shards: TokenShards, config: Config, samples: Sequence[Sample], sample_ids_B2: np.ndarray, slots: DomainSlots
) -> Batch:
    return assemble_batch(
        [window for window, _ in samples],
        sample_ids_B2,
        slots.domain_of_slot,
        slots.slot_of_sample_B,
        config.model.seq_length,
        shards.pad_id,
        shards.eot_id,
        config.data.eod_reset
        and not shards.has_records,  # a record is one document despite the <eot> after each answer
        [counted for _, counted in samples],
    )


def _samples_of(shards: TokenShards, domain_name: str, split: str, seq_length: int) -> Samples:
    samples = shards.samples(domain_name, split, seq_length)
    if len(samples) < 1:
        raise DataError(
            f"the {split} split of domain {domain_name!r} has {shards.num_tokens(domain_name, split)} tokens, less "
            f"than one sample of model.seq_length + 1 = {seq_length + 1}; add text, shorten model.seq_length, take the "
            "domain out of domains.names, or give it the weight 0 in data.mixture"
        )
    return samples
