"""Blueprint: what a checkpoint consists of, without its weights; where they come from, file by file.

A change of a model is a function from one blueprint to another. What it does not mention stays as it is, so its file is
taken over bit for bit (`build.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from mindpangu.checkpoint import CheckpointReader, read_table, read_tokenizers, shards_of_experts
from mindpangu.checkpoint.dense import dense_files
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.config import Config
from mindpangu.domains import Domain, build_domains, domain_named
from mindpangu.errors import CheckpointError
from mindpangu.routing.table import DomainTable
from mindpangu.tokenizer import Tokenizer

WORD_EMBEDDING, HEAD = "word_embedding", "head.weight"
MOMENTS = ("adam_m.", "adam_v.")


@dataclass(frozen=True)
class Origin:
    """An expert of an existing checkpoint, with its Adam moments and its step count."""

    reader: CheckpointReader
    layer: int
    domain: str
    index: int

    @property
    def number(self) -> int:
        """In how many files it is."""
        return _parts(self.reader).get((self.layer, self.domain, self.index), 1)

    def open(self, shapes: Mapping[str, tuple[int, ...]]) -> ExpertTensors:
        """Its tensors. Raises CheckpointError for files that are missing, altered or of other shapes."""
        return ExpertTensors(self.reader, self.layer, self.domain, self.index, self.number, shapes)


@cache  # of each checkpoint that experts come from
def _parts(reader: CheckpointReader) -> dict[tuple[int, str, int], int]:
    return shards_of_experts(reader.files)


@dataclass(frozen=True)
class NewExpert:
    """An expert whose tensors are made.

    Attributes:
        make: returns them, float32: "up", "up_bias", "down", "down_bias", and Adam's moments, "adam_m.up", ….
        step_count: how often it was updated.
    """

    make: Callable[[], Mapping[str, np.ndarray]]
    step_count: int = 0


@dataclass(frozen=True)
class DomainContent:
    """A domain's routing table and where its experts come from: (layer, index in the group) → source."""

    table: DomainTable
    expert: Callable[[int, int], Origin | NewExpert]


@dataclass(frozen=True)
class DenseChange:
    """What becomes of a dense parameter, and of its Adam moments alike.

    Attributes:
        shape: the new one.
        apply: (whole tensor as it was, whether it is a moment) → the new one, float32.
    """

    shape: tuple[int, ...]
    apply: Callable[[np.ndarray, bool], np.ndarray]


@dataclass(frozen=True)
class DenseContent:
    """Where the dense parameters and their moments come from.

    Attributes:
        reader: the checkpoint that has them.
        changes: parameter → what becomes of it.
        dropped: parameters that are left out.
        renamed: parameter → what it is called from now on; changes and `dropped` go by the old names.
    """

    reader: CheckpointReader
    changes: Mapping[str, DenseChange] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def new_name(self, tensor: str) -> str:
        """Of a parameter, or of a moment of one ("adam_m.…")."""
        prefix = next((prefix for prefix in MOMENTS if tensor.startswith(prefix)), "")
        parameter = tensor.removeprefix(prefix)
        return prefix + self.renamed.get(parameter, parameter)

    def changed(self, name: str, change: DenseChange) -> "DenseContent":
        """With a change of a parameter, after those that it has already."""
        before = self.changes.get(name)
        if before is not None:
            later = change
            change = DenseChange(later.shape, lambda values, moment: later.apply(before.apply(values, moment), moment))
        return replace(self, changes={**self.changes, name: change})


@dataclass(frozen=True)
class Blueprint:
    """Everything that a checkpoint consists of.

    Attributes:
        config: with it the domains, their sizes and vocabularies.
        tokenizers: vocabulary → tokenizer.
        contents: domain name → its table and experts; empty for a dense model.
        step: of the checkpoint; its number. digests: of the data that it was trained on.
        with_moments: keep Adam's moments, so that training can go on as if nothing had happened to them.
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
        """That of an existing checkpoint.

        Raises:
            CheckpointError: files of it are missing or altered. RoutingError, TokenizerError: … or do not fit together.
        """
        config = reader.config()
        tokenizers, table, contents = read_tokenizers(reader, config), read_table(reader, config), {}
        for domain in build_domains(config) if table is not None else ():
            contents[domain.name] = _as_it_is(reader, table.domain(domain.name))
        digests = reader.json("state.json").get("digests", {})
        with_moments = any(
            name.startswith("adam_")
            for file in dense_files(reader)
            for name in TensorFile(reader.folder / file).tensors
        )
        return Blueprint(config, tokenizers, contents, DenseContent(reader), reader.step, digests, with_moments)

    @property
    def domains(self) -> tuple[Domain, ...]:
        return build_domains(self.config)

    def domain(self, name: str) -> Domain:
        """Raises ConfigError for a domain that the model does not have."""
        return domain_named(self.domains, name)[1]

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        return self.tokenizers[domain.vocabulary]

    def with_token_tables(self, change: DenseChange) -> DenseContent:
        """With a change of what has a row for each token: the embedding, and a head that is not tied to it."""
        dense = self.dense.changed(WORD_EMBEDDING, change)
        return dense if self.config.model.tied_head else dense.changed(HEAD, change)

    def require_experts(self) -> None:
        """Raises CheckpointError for a dense model."""
        if not self.contents:
            raise CheckpointError(
                f"{self.dense.reader.folder} is a dense model (model.rre_layers 0), which has no experts; "
                "`mindpangu upcycle` makes a sparse one of it"
            )

    def with_domain(self, name: str, content: DomainContent) -> "Blueprint":
        """With another table and other experts for a domain; the configuration follows the size of its group."""
        section = self.config.domains
        sizes = {**section.experts, name: content.table.num_experts}
        if content.table.num_experts == section.experts_per_domain:
            del sizes[name]
        config = replace(self.config, domains=replace(section, experts=sizes))
        return replace(self, config=config, contents={**self.contents, name: content})


def _as_it_is(reader: CheckpointReader, table: DomainTable) -> DomainContent:
    return DomainContent(table, lambda layer, index: Origin(reader, layer, table.name, index))
