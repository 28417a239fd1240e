"""Vocabularies: row ranges of the one embedding table, each with its own tokenizer.

Token ids are local to a vocabulary; this module maps them to rows of the table. By default there is one vocabulary.
It runs on the host; the model receives only the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.config import Config
from mindpangu.domains import MAIN_VOCABULARY, Domain

MIXED = -1
"""The vocabulary of a batch whose samples have different vocabularies."""


@dataclass(frozen=True)
class Vocabularies:
    """The vocabularies of a model: vocabulary i, named names[i], owns rows starts[i] to starts[i] + sizes[i] − 1, and
    vocabulary_of_domain maps domain ids to i."""

    names: tuple[str, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    vocabulary_of_domain: tuple[int, ...]

    @staticmethod
    def build(config: Config, domains: Sequence[Domain]) -> "Vocabularies":
        """Returns the vocabularies of a configuration."""
        vocabularies = config.domains.vocabularies
        names = tuple(vocabulary.name for vocabulary in vocabularies) or (MAIN_VOCABULARY,)
        sizes = tuple(vocabulary.vocab_size for vocabulary in vocabularies) or (config.model.vocab_size,)
        starts = tuple(int(start) for start in np.cumsum((0, *sizes[:-1])))
        return Vocabularies(names, starts, sizes, tuple(names.index(domain.vocabulary) for domain in domains))

    @property
    def num_rows(self) -> int:
        """Number of rows of the embedding table."""
        return sum(self.sizes)

    def of_samples(self, domain_of_slot: Sequence[int], slot_of_sample_B: np.ndarray) -> np.ndarray:
        """Returns int32 [B]: the vocabulary of each sample, which is that of the domain in its slot."""
        vocabularies = [self.vocabulary_of_domain[domain] for domain in domain_of_slot]
        return np.array(vocabularies, np.int32)[slot_of_sample_B]

    def common(self, vocabulary_of_sample_B: np.ndarray) -> int:
        """Returns the vocabulary that all these samples share, or MIXED."""
        vocabularies = set(vocabulary_of_sample_B.tolist())
        return vocabularies.pop() if len(vocabularies) == 1 else MIXED

    def rows(self, tokens_BS: np.ndarray, vocabulary_of_sample_B: np.ndarray) -> np.ndarray:
        """Returns int32 [B, S]: the rows of the table for token ids of their sample's vocabulary."""
        return tokens_BS + np.array(self.starts, np.int32)[vocabulary_of_sample_B][:, None]
