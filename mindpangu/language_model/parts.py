"""The parts of a model that must agree: configuration, domains, vocabularies, tokenizers, and routing table."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from mindpangu.checkpoint import CheckpointReader, ExpertFile, read_table, read_tokenizers
from mindpangu.config import Config
from mindpangu.config.schema import ContextConfig
from mindpangu.data import TokenShards
from mindpangu.domains import Domain, build_domains
from mindpangu.errors import CheckpointError, ConfigError, DataError, TokenizerError
from mindpangu.model.initialization import expert_shapes
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer


class ModelParts:
    """A model without its weights.

    Attributes:
        config, domains, vocabularies, tokenizers, table: as named; table is None for a dense model.

    Args:
        tokenizers: vocabulary → tokenizer.

    Raises:
        TokenizerError: a tokenizer that does not fit its vocabulary.
        ConfigError: a table that does not fit the configuration.
    """

    def __init__(self, config: Config, tokenizers: Mapping[str, Tokenizer], table: RoutingTable | None):
        self.config, self.table, self.tokenizers = config, table, dict(tokenizers)
        self.domains: tuple[Domain, ...] = build_domains(config)
        self.vocabularies = Vocabularies.build(config, self.domains)
        self._check_tokenizers()
        if config.model.rre_layers:
            self._check_table()

    @classmethod
    def read(cls, reader: CheckpointReader, context: ContextConfig | None = None) -> "ModelParts":
        """From a checkpoint.

        Args:
            context: what computes, and in which number format; None for what the checkpoint was trained with.

        Raises:
            CheckpointError: files that are not as its manifest says.
        """
        config = reader.config()
        config = replace(config, context=context or config.context)
        return cls(config, read_tokenizers(reader, config), read_table(reader, config))

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        return self.tokenizers[domain.vocabulary]

    def require_data(self, shards: TokenShards) -> None:
        """Raises DataError unless the shards hold this model's domains, in its own tokens."""
        names = tuple(domain.name for domain in self.domains)
        if shards.domain_names != names:
            raise DataError(
                f"the token shards in {shards.folder} are of the domains {', '.join(shards.domain_names)}; "
                f"this model has {', '.join(names)}"
            )
        for tokenizer in self.tokenizers.values():
            shards.require_tokenizer(tokenizer.digest)

    @cached_property
    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor → shape, of a whole expert."""
        return expert_shapes(self.config)

    def expert_header(
        self, layer: int, domain_id: int, index: int, part: tuple[int, int], step_count: int = 0
    ) -> ExpertFile:
        """What the file of an expert (or of a part of one) says of itself. `index` counts in the domain's group."""
        domain = self.domains[domain_id]
        return ExpertFile(
            layer=layer,
            domain=domain.name,
            index=index,
            step_count=step_count,
            table=self.table.domain_digest(domain.name),
            tokenizer=self.tokenizer_of(domain).digest,
            shard=part,
        )

    def _check_tokenizers(self) -> None:
        for name, size in zip(self.vocabularies.names, self.vocabularies.sizes, strict=True):
            if name not in self.tokenizers:
                raise TokenizerError(f"vocabulary {name!r} has no tokenizer")
            found = self.tokenizers[name].vocab_size
            if found > size:
                raise TokenizerError(
                    f"the tokenizer of vocabulary {name!r} has {found} pieces, but the embedding has {size} rows; "
                    f"set model.vocab_size (or the vocabulary's vocab_size) to {found} or more"
                )

    def _check_table(self) -> None:
        if self.table is None or self.table.num_layers != self.config.model.rre_layers:
            found = "none" if self.table is None else f"one of {self.table.num_layers} layers"
            raise ConfigError(f"model.rre_layers is {self.config.model.rre_layers}, but the routing table is {found}")
        for domain in self.domains:
            found = self.table.num_experts(domain.name)
            if found != domain.num_experts:
                raise ConfigError(
                    f"domain {domain.name} has {domain.num_experts} experts in the configuration, "
                    f"but {found} in its routing table; build the table again or load the matching one"
                )


def require_header(path: Path, header: ExpertFile, expected: ExpertFile) -> None:
    """Raises CheckpointError if a file is another expert's, or was trained with other tables or tokenizers."""
    for item in ("layer", "domain", "index", "shard", "table", "tokenizer"):
        found, wanted = getattr(header, item), getattr(expected, item)
        if found != wanted:
            raise CheckpointError(f"{path}: its {item} is {found}, this model's is {wanted}; it is refused")
