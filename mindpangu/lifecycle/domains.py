"""Setting a domain's experts, and removing domains. All other domains stay the same, bit for bit.

A new domain must first be added to the configuration (`add.py`).
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.config import Config
from mindpangu.config.schema import NETWORK_KEYS, DomainsConfig, ParallelismConfig
from mindpangu.domains import known_domains
from mindpangu.errors import CheckpointError, ConfigError
from mindpangu.lifecycle.blueprint import Blueprint, DenseChange, DomainContent, NewExpert
from mindpangu.model.initialization import MATRICES, dense_name, initial_expert, network_tensors
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.routing.assignment import assign_layers
from mindpangu.routing.table import DomainTable


def from_domain(blueprint: Blueprint, parent: str, name: str) -> Blueprint:
    """Turns `name` into a copy of the domain `parent`: its table, its experts, their Adam moments and step counts."""
    blueprint.require_experts()
    parent_vocabulary = blueprint.domain(parent).vocabulary
    vocabulary = blueprint.domain(name).vocabulary
    if parent_vocabulary != vocabulary:
        raise ConfigError(
            f"{parent} and {name} use the vocabularies {parent_vocabulary} and {vocabulary}; a table only fits the "
            "tokens of its vocabulary"
        )
    content = blueprint.contents[parent]
    return blueprint.with_domain(name, DomainContent(replace(content.table, name=name), content.expert))


def from_dense(blueprint: Blueprint, dense: CheckpointReader, name: str, num_experts: int, noise: float) -> Blueprint:
    """Turns each expert of `name` into a copy of a dense model's feed-forward network of the same layer.

    Args:
        noise: standard deviation of the noise on each expert's weights, relative to theirs.

    Raises:
        CheckpointError: the other model is sparse, or has another shape.
        ConfigError: the noise or the number of experts is out of range.
    """
    if dense.config().model.rre_layers:
        raise CheckpointError(
            f"{dense.folder} is sparse; --from-dense needs a dense model, --from a domain of this one"
        )
    require_same_shape(blueprint.config, dense)
    table = _random_table(blueprint, name, num_experts)
    return blueprint.with_domain(name, DomainContent(table, ExpertsOfDense(blueprint.config, dense, name, noise)))


def fresh(blueprint: Blueprint, name: str, num_experts: int) -> Blueprint:
    """Draws the experts of `name` at random, as at the start of training."""
    config = blueprint.config
    table = _random_table(blueprint, name, num_experts)

    def expert(layer: int, index: int) -> NewExpert:
        return NewExpert(lambda: initial_expert(config, layer, name, index))

    return blueprint.with_domain(name, DomainContent(table, expert))


def replace_domain(blueprint: Blueprint, name: str, other: Blueprint, other_name: str) -> Blueprint:
    """Replaces the table and experts of `name` with those of a domain of another run.

    Raises:
        CheckpointError: the other model has another shape, or its domain another tokenizer.
    """
    blueprint.require_experts()
    other.require_experts()
    domain = blueprint.domain(name)
    theirs = other.domain(other_name)
    require_same_shape(blueprint.config, other.dense.reader)
    if blueprint.tokenizer_of(domain).digest != other.tokenizer_of(theirs).digest:
        raise CheckpointError(
            f"domain {other_name} of {other.dense.reader.folder} was trained with another tokenizer than {name}; its "
            "experts would be useless here"
        )
    content = other.contents[other_name]
    return blueprint.with_domain(name, DomainContent(replace(content.table, name=name), content.expert))


def remove_domains(blueprint: Blueprint, names: set[str]) -> Blueprint:
    """Removes domains, and vocabularies that are left without a domain. Keeps all other embedding rows.

    Raises:
        ConfigError: the model does not have one of the domains, or none would be left.
    """
    blueprint.require_experts()
    for name in names:
        blueprint.domain(name)
    kept = [domain.name for domain in blueprint.domains if domain.name not in names]
    if not kept:
        raise ConfigError(f"a model needs a domain; {', '.join(sorted(names))} would leave none")
    config = blueprint.config
    data = config.data
    mixture = {name: weight for name, weight in data.mixture.items() if name in kept}
    section = replace(
        config.domains,
        added=[added for added in config.domains.added if added.name in kept],
        experts={name: size for name, size in config.domains.experts.items() if name in kept},
        vocabularies=[
            replace(vocabulary, domains=[name for name in vocabulary.domains if name in kept])
            for vocabulary in config.domains.vocabularies
            if set(vocabulary.domains) & set(kept)
        ],
    )
    blueprint = _without_vocabularies(blueprint, {blueprint.domain(name).vocabulary for name in kept})
    # the training settings may name removed domains, and a mixture must have a weight above 0
    config = replace(
        config,
        domains=replace(section, names=names_setting(config, section, kept)),
        data=replace(data, mixture=mixture if any(mixture.values()) else {}, phases=[], domain_groups=1),
        training=replace(config.training, train="all"),
        parallelism=ParallelismConfig(),
    )
    return replace(
        blueprint,
        config=config,
        contents={name: content for name, content in blueprint.contents.items() if name in kept},
    )


def _without_vocabularies(blueprint: Blueprint, kept: set[str]) -> Blueprint:
    """Removes all vocabularies but the kept ones, with their rows and tokenizers."""
    vocabularies = Vocabularies.build(blueprint.config, blueprint.domains)
    if kept == set(vocabularies.names):
        return blueprint
    rows_V = np.concatenate(
        [
            np.arange(start, start + size)
            for name, start, size in zip(vocabularies.names, vocabularies.starts, vocabularies.sizes, strict=True)
            if name in kept
        ]
    )
    shape = (len(rows_V), blueprint.config.model.hidden_size)
    change = DenseChange(shape, lambda table_VH, is_moment: table_VH[rows_V])
    return replace(
        blueprint,
        tokenizers={name: tokenizer for name, tokenizer in blueprint.tokenizers.items() if name in kept},
        dense=blueprint.with_token_tables(change),
    )


class ExpertsOfDense:
    """The experts of one domain as copies of a dense model's feed-forward networks: (layer, index) → NewExpert.

    Args:
        config: configuration of the sparse model.
        dense: checkpoint of the dense model.
        name: name of the domain.
        noise: standard deviation of the noise on each expert's weights, relative to theirs.

    Raises:
        ConfigError: the noise is out of range.
    """

    def __init__(self, config: Config, dense: CheckpointReader, name: str, noise: float):
        if not 0 <= noise < 100:
            raise ConfigError(f"--noise is {noise}; allowed: >= 0 and < 100")
        self._config = config
        self._name = name
        self._noise = noise
        self._files = DenseFiles(dense, dense.config())

    def __call__(self, layer: int, index: int) -> NewExpert:
        return NewExpert(lambda: self._make(layer, index))

    def _make(self, layer: int, index: int) -> dict[str, np.ndarray]:
        block = rre_block(self._config, layer)
        tensors = {
            name: self._files.read(f"{block}.ffn.{dense_name(name)}") for name in network_tensors(self._config.model)
        }
        if self._noise:
            drawn = initial_expert(self._config, layer, self._name, index)
            for name in (name for name in MATRICES if name in tensors):
                spread = drawn[name].std()
                tensors[name] += self._noise * tensors[name].std() / spread * drawn[name]
        return tensors


def rre_block(config: Config, layer: int) -> str:
    """Returns the name prefix of the parameters of an RRE layer's block."""
    block_index = config.model.num_layers - config.model.rre_layers + layer
    is_query_layer = config.model.query_layer and block_index == config.model.num_layers - 1
    return "query_layer" if is_query_layer else f"blocks.{block_index}"


def require_same_shape(config: Config, other: CheckpointReader) -> None:
    """Raises CheckpointError unless the experts of the other model fit into this one."""
    ours = config.model
    theirs = other.config().model
    keys = ["num_layers", "hidden_size", "ffn_hidden_size", *NETWORK_KEYS, "query_layer"]
    keys += ["rre_layers"] if theirs.rre_layers else []
    for key in keys:
        if getattr(ours, key) != getattr(theirs, key):
            raise CheckpointError(
                f"{other.folder} has model.{key} {getattr(theirs, key)}, this model has {getattr(ours, key)}; experts "
                "fit only where they are the same"
            )


def require_group_size(num_experts: int, num_tokens: int) -> None:
    """Raises ConfigError unless a domain of `num_tokens` token ids can have `num_experts` experts."""
    most = min(65535, num_tokens)
    if not 1 <= num_experts <= most:
        raise ConfigError(
            f"--experts is {num_experts}; a domain of {num_tokens} token ids can have 1 to {most} experts"
        )


def _random_table(blueprint: Blueprint, name: str, num_experts: int) -> DomainTable:
    """Assigns tokens to experts at random (PanGu-Σ, Algorithm 1): without text the token frequencies are unknown."""
    config = blueprint.config
    vocabulary = blueprint.domain(name).vocabulary
    sizes = {each.name: each.vocab_size for each in config.domains.vocabularies}
    counts_V = np.zeros(sizes.get(vocabulary, config.model.vocab_size), np.int64)
    require_group_size(num_experts, len(counts_V))
    routing = replace(config.routing, assignment="random")
    experts_LV = assign_layers(counts_V, num_experts, config.model.rre_layers, name, routing)
    return DomainTable(name, num_experts, "random", experts_LV)


def names_setting(config: Config, section: DomainsConfig, names: Collection[str]) -> list[str]:
    """Returns the value of domains.names: empty if `names` are all domains of the preset and domains.added."""
    known = known_domains(replace(config, domains=section))
    return [] if set(names) == set(known) else [name for name in known if name in names]
