"""The parts of a model that must agree: configuration, domains, vocabularies, tokenizers, and routing table."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from mindpangu.checkpoint import CheckpointReader, ExpertFile, read_table, read_tokenizers
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.config.schema import ContextConfig, ExpertsConfig
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
        config: the resolved configuration.
        domains: its domains.
        vocabularies: the row ranges of the embedding.
        tokenizers: name of a vocabulary → its tokenizer.
        table: the routing table; None for a dense model.

    Raises:
        TokenizerError: a vocabulary has no tokenizer, or one with too many pieces.
        ConfigError: the routing table does not match the configuration.
    """

    def __init__(self, config: Config, tokenizers: Mapping[str, Tokenizer], table: RoutingTable | None):
        self.config = config
        self.table = table
        self.tokenizers = dict(tokenizers)
        self.domains: tuple[Domain, ...] = build_domains(config)
        self.vocabularies = Vocabularies.build(config, self.domains)
        self._check_tokenizers()
        if config.model.rre_layers:
            self._check_table()

    @classmethod
    def from_run(cls, config: Config) -> "ModelParts":
        """Reads the tokenizers and the routing table of a configuration's run folder."""
        folder = RunFolder.from_config(config)
        tokenizers = {path.stem: Tokenizer.load(path) for path in sorted(folder.tokenizer.glob("*.model"))}
        table = None
        if config.model.rre_layers:
            table = RoutingTable.load(folder.routing, [domain.name for domain in build_domains(config)])
        return cls(config, tokenizers, table)

    @classmethod
    def from_checkpoint(
        cls, reader: CheckpointReader, context: ContextConfig | None = None, experts: ExpertsConfig | None = None
    ) -> "ModelParts":
        """Reads the parts of a checkpoint. Their configuration has the run folder that the checkpoint lies in.

        Args:
            context: device and number format to compute with; None to keep those of the training.
            experts: where to store the experts; None keeps the training's kind of storage, in the run folder.

        Raises:
            CheckpointError: a file does not match the manifest.
        """
        config = reader.config(reader.local_settings())
        if experts is not None:
            stored = replace(config.experts, storage=experts.storage, storage_folder=experts.storage_folder)
            config = replace(config, experts=stored)
        config = replace(config, context=context or config.context)
        return cls(config, read_tokenizers(reader, config), read_table(reader, config))

    def tokenizer_of(self, domain: Domain) -> Tokenizer:
        return self.tokenizers[domain.vocabulary]

    def require_data(self, shards: TokenShards) -> None:
        """Raises DataError unless the shards hold this model's domains, encoded with its tokenizers."""
        names = tuple(domain.name for domain in self.domains)
        if shards.domain_names != names:
            raise DataError(
                f"the token shards in {shards.folder} have the domains {', '.join(shards.domain_names)}; "
                f"this model has {', '.join(names)}"
            )
        for tokenizer in self.tokenizers.values():
            shards.require_tokenizer(tokenizer)

    @cached_property
    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor → its shape in a complete expert."""
        return expert_shapes(self.config)

    def expert_header(
        self, layer: int, domain_id: int, index: int, shard: tuple[int, int], step_count: int = 0
    ) -> ExpertFile:
        """Builds the header that the file of an expert must have.

        Args:
            index: index of the expert in the domain's group.
            shard: (index, number of shards) of the file; (0, 1) if it holds the complete expert.
        """
        domain = self.domains[domain_id]
        assert self.table is not None, "a dense model has no experts"
        return ExpertFile(
            layer=layer,
            domain=domain.name,
            index=index,
            step_count=step_count,
            table=self.table.domain_digest(domain.name),
            tokenizer=self.tokenizer_of(domain).digest,
            shard=shard,
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
            num_experts = self.table.num_experts(domain.name)
            if num_experts != domain.num_experts:
                raise ConfigError(
                    f"domain {domain.name} has {domain.num_experts} experts in the configuration, "
                    f"but {num_experts} in its routing table; build the table again or load the matching one"
                )
            num_tokens = self.table.vocab_size(domain.name)
            num_pieces = self.tokenizer_of(domain).vocab_size
            if num_tokens < num_pieces:
                raise ConfigError(
                    f"the routing table of domain {domain.name} has {num_tokens} token ids, but its tokenizer has "
                    f"{num_pieces} pieces; build the table again or load the matching one"
                )


def require_header(path: Path, header: ExpertFile, expected: ExpertFile) -> None:
    """Raises CheckpointError if a file belongs to another expert, or was trained with another table or tokenizer."""
    for item in ("layer", "domain", "index", "shard", "table", "tokenizer"):
        found = getattr(header, item)
        wanted = getattr(expected, item)
        if found != wanted:
            raise CheckpointError(f"{path}: its {item} is {found}, this model's is {wanted}; it is refused")
