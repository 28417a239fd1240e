"""The blueprint of a checkpoint: its content, with the source of each file in place of the weights.

A change to a model is a function from one blueprint to another. `build.py` carries over bit for bit every file that no
change concerns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from mindpangu.checkpoint import CheckpointReader, SavedState, read_table, read_tokenizers, shards_of_experts
from mindpangu.checkpoint.dense import dense_files
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.config import Config
from mindpangu.domains import Domain, build_domains, domain_named
from mindpangu.errors import CheckpointError
from mindpangu.language_model import ModelParts
from mindpangu.routing.table import DomainTable
from mindpangu.tokenizer import Tokenizer

WORD_EMBEDDING = "word_embedding"
HEAD = "head.weight"
MOMENTS = ("adam_m.", "adam_v.")


@dataclass(frozen=True)
class Origin:
    """An expert of an existing checkpoint, with its Adam moments and its step count."""

    reader: CheckpointReader
    layer: int
    domain: str
    index: int

    @property
    def num_files(self) -> int:
        """Number of files that hold the expert."""
        return _num_files(self.reader).get((self.layer, self.domain, self.index), 1)

    def open(self, shapes: Mapping[str, tuple[int, ...]]) -> ExpertTensors:
        """Opens the expert's tensors. Raises CheckpointError if a file is missing or altered, or has other shapes."""
        return ExpertTensors(self.reader, self.layer, self.domain, self.index, self.num_files, shapes)


@cache  # once per source checkpoint
def _num_files(reader: CheckpointReader) -> dict[tuple[int, str, int], int]:
    return shards_of_experts(reader.files)


@dataclass(frozen=True)
class NewExpert:
    """An expert whose tensors are computed rather than read.

    Attributes:
        make: returns the tensors, float32: "up", "up_bias", "down", "down_bias", and Adam's moments, "adam_m.up", ….
        step_count: number of updates that the expert has received.
    """

    make: Callable[[], Mapping[str, np.ndarray]]
    step_count: int = 0


@dataclass(frozen=True)
class DomainContent:
    """A domain's routing table and the source of its experts: (layer, index in the group) → source."""

    table: DomainTable
    expert: Callable[[int, int], Origin | NewExpert]


@dataclass(frozen=True)
class DenseChange:
    """A change to a dense parameter and to its Adam moments.

    Attributes:
        shape: the new shape.
        apply: (complete old tensor, whether it is a moment) → new tensor, float32.
    """

    shape: tuple[int, ...]
    apply: Callable[[np.ndarray, bool], np.ndarray]


@dataclass(frozen=True)
class DenseContent:
    """The source of the dense parameters and their moments.

    Attributes:
        reader: the checkpoint that holds them.
        changes: parameter → change.
        dropped: parameters that are left out.
        renamed: parameter → new name; `changes` and `dropped` use the old names.
    """

    reader: CheckpointReader
    changes: Mapping[str, DenseChange] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def new_name(self, tensor: str) -> str:
        """Returns the new name of a parameter or of a moment ("adam_m.…")."""
        prefix = next((prefix for prefix in MOMENTS if tensor.startswith(prefix)), "")
        parameter = tensor.removeprefix(prefix)
        return prefix + self.renamed.get(parameter, parameter)

    def with_change(self, name: str, change: DenseChange) -> "DenseContent":
        """Returns a copy that applies the change to a parameter after its existing changes."""
        before = self.changes.get(name)
        if before is not None:
            later = change
            change = DenseChange(later.shape, lambda values, moment: later.apply(before.apply(values, moment), moment))
        return replace(self, changes={**self.changes, name: change})


@dataclass(frozen=True)
class Blueprint:
    """The complete content of a checkpoint.

    Attributes:
        config: configuration, including the domains, their sizes and vocabularies.
        tokenizers: vocabulary → tokenizer.
        contents: domain name → its table and experts; empty for a dense model.
        dense: source of the dense parameters.
        step: training step of the checkpoint.
        digests: digests of the data that the model was trained on.
        with_moments: whether Adam's moments are kept, so that training can continue with them.
    """

    config: Config
    tokenizers: Mapping[str, Tokenizer]
    contents: Mapping[str, DomainContent]
    dense: DenseContent
    step: int
    digests: Mapping[str, str] = field(default_factory=dict)
    with_moments: bool = True

    @staticmethod
    def from_checkpoint(reader: CheckpointReader) -> "Blueprint":
        """Returns the blueprint of an existing checkpoint.

        Raises:
            CheckpointError: files are missing or altered.
            ConfigError, RoutingError, TokenizerError: its files do not fit together.
        """
        config = reader.config()
        parts = ModelParts(config, read_tokenizers(reader, config), read_table(reader, config))
        contents = {}
        if parts.table is not None:
            for domain in parts.domains:
                contents[domain.name] = _existing_content(reader, parts.table.domain(domain.name))
        digests = SavedState.read(reader).digests
        with_moments = any(
            name.startswith("adam_")
            for file in dense_files(reader)
            for name in TensorFile(reader.require_size(file)).tensors
        )
        return Blueprint(config, parts.tokenizers, contents, DenseContent(reader), reader.step, digests, with_moments)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """All domains of the model, by their ids."""
        return build_domains(self.config)

    def domain(self, name: str) -> Domain:
        """Returns the domain of this name. Raises ConfigError if the model does not have it."""
        return domain_named(self.domains, name)[1]

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        """Returns the tokenizer of the domain's vocabulary."""
        return self.tokenizers[domain.vocabulary]

    def with_token_tables(self, change: DenseChange) -> DenseContent:
        """Returns the dense content with a change to all tables of token rows: the embedding, and an untied head."""
        dense = self.dense.with_change(WORD_EMBEDDING, change)
        return dense if self.config.model.tied_head else dense.with_change(HEAD, change)

    def require_experts(self) -> None:
        """Raises CheckpointError for a dense model."""
        if not self.contents:
            raise CheckpointError(
                f"{self.dense.reader.folder} is a dense model (model.rre_layers 0), which has no experts; "
                "`mindpangu upcycle` turns it into a sparse one"
            )

    def with_domain(self, name: str, content: DomainContent) -> "Blueprint":
        """Returns a copy with another table and other experts for a domain. Updates its size in the configuration."""
        section = self.config.domains
        sizes = {**section.experts, name: content.table.num_experts}
        if content.table.num_experts == section.experts_per_domain:
            del sizes[name]
        config = replace(self.config, domains=replace(section, experts=sizes))
        return replace(self, config=config, contents={**self.contents, name: content})


def _existing_content(reader: CheckpointReader, table: DomainTable) -> DomainContent:
    return DomainContent(table, lambda layer, index: Origin(reader, layer, table.name, index))
