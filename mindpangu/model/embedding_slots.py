"""Embedding slots: row ranges of the one embedding table, each with a vocabulary of its own.

Token ids are local to a slot; this module turns them into rows of the table. One slot is the default.
Host-side and plain Python; the model only sees the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.config import Config
from mindpangu.domains import MAIN_SLOT, Domain

MIXED = -1


@dataclass(frozen=True)
class EmbeddingSlots:
    """names[i] owns the rows starts[i] … starts[i] + sizes[i] of the table; slot_of_domain maps domain ids to i."""

    names: tuple[str, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    slot_of_domain: tuple[int, ...]

    @staticmethod
    def build(config: Config, domains: Sequence[Domain]) -> "EmbeddingSlots":
        slots = config.domains.embedding_slots
        names = tuple(slot.name for slot in slots) or (MAIN_SLOT,)
        sizes = tuple(slot.vocab_size for slot in slots) or (config.model.vocab_size,)
        starts = tuple(int(start) for start in np.cumsum((0, *sizes[:-1])))
        return EmbeddingSlots(names, starts, sizes, tuple(names.index(domain.embedding_slot) for domain in domains))

    @property
    def num_rows(self) -> int:
        return sum(self.sizes)

    def of_samples(self, domain_of_slot: Sequence[int], slot_of_sample_B: np.ndarray) -> np.ndarray:
        """int32 [B]: the embedding slot of each sample, from the domain in its domain slot."""
        slots = [self.slot_of_domain[domain] for domain in domain_of_slot]
        return np.array(slots, np.int32)[slot_of_sample_B]

    def common(self, sample_slots_B: np.ndarray) -> int:
        """The one embedding slot that all these samples share, or MIXED."""
        slots = set(sample_slots_B.tolist())
        return slots.pop() if len(slots) == 1 else MIXED

    def rows(self, tokens_BS: np.ndarray, sample_slots_B: np.ndarray) -> np.ndarray:
        """int32 [B, S]: rows of the table for token ids that are local to their sample's slot."""
        return tokens_BS + np.array(self.starts, np.int32)[sample_slots_B][:, None]
