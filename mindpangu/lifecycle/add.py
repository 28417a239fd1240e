"""Adding a new domain to a model's configuration: its name, its control tokens, optionally its own vocabulary.

Its experts are chosen afterwards (`domains.py`).
"""

from dataclasses import dataclass, replace

import numpy as np

from mindpangu.checkpoint.vocabulary import VocabularyMap, random_rows
from mindpangu.config.schema import AddedDomainConfig, ParallelismConfig, VocabularyConfig
from mindpangu.domains import MAIN_VOCABULARY, PRESETS, Domain, known_domains
from mindpangu.errors import ConfigError
from mindpangu.lifecycle.blueprint import Blueprint, DenseChange
from mindpangu.lifecycle.domains import names_setting
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tokenizer import Tokenizer, reserved_control_tokens


@dataclass(frozen=True)
class NewDomain:
    """Settings of a domain to add.

    Attributes:
        name: name of the domain.
        kind: "monolingual", "bilingual" or "code". "" takes the kind of PanGu-Σ's domain of this name, else that of
            `like`, else "monolingual".
        control_tokens: tokens that open the parts of its documents. Empty takes those of PanGu-Σ's domain of this name
            if the tokenizer has them, else reserved ones that no other domain uses.
        tokenizer: tokenizer of its own vocabulary; None shares the vocabulary of `like`.
        like: an existing domain of the model; "" means the first one.
    """

    name: str
    kind: str = ""
    control_tokens: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    like: str = ""


def add_domain(blueprint: Blueprint, new: NewDomain) -> tuple[Blueprint, Domain]:
    """Returns a blueprint whose configuration has the new domain. The caller must add the domain's content.

    Raises:
        ConfigError: the model already has a domain of this name, or no control token is left for it.
        TokenizerError: the tokenizer lacks a given control token.
    """
    blueprint.require_experts()
    if new.name in (domain.name for domain in blueprint.domains):
        raise ConfigError(
            f"the model already has a domain {new.name!r}; `experts replace` or `experts copy` changes it"
        )
    like = blueprint.domain(new.like) if new.like else blueprint.domains[0]
    config = blueprint.config
    names = [*(domain.name for domain in blueprint.domains), new.name]
    section = replace(config.domains, vocabularies=_vocabularies(blueprint, new, like))
    if new.name not in known_domains(config):
        tokenizer = new.tokenizer or blueprint.tokenizer_of(like)
        section = replace(section, added=[*section.added, _added_domain_config(blueprint, new, like, tokenizer)])
    elif new.kind or new.control_tokens:
        raise ConfigError(
            f"domain {new.name!r} is known: its kind and control tokens are those of {section.preset} or "
            "domains.added; leave them out, or choose another name"
        )
    # domains that were grouped because their weights were equal may have other weights now
    data = replace(config.data, domain_groups=1)
    if data.mixture:
        data = replace(data, mixture={**data.mixture, new.name: 0.0})
    if new.tokenizer is not None:
        blueprint = _with_vocabulary(blueprint, new.name, new.tokenizer, like)
    section = replace(section, names=names_setting(config, section, names))
    config = replace(config, domains=section, data=data, parallelism=ParallelismConfig())
    blueprint = replace(blueprint, config=config)
    domain = blueprint.domain(new.name)
    for token in domain.control_tokens:
        blueprint.tokenizer_of(domain).control_id(token)
    return blueprint, domain


def _vocabularies(blueprint: Blueprint, new: NewDomain, like: Domain) -> list[VocabularyConfig]:
    """Returns the vocabularies with the domain added, either to that of `like` or as a new one after all others."""
    vocabularies = blueprint.config.domains.vocabularies
    if new.tokenizer is None:
        return [
            replace(vocabulary, domains=[*vocabulary.domains, new.name])
            if vocabulary.name == like.vocabulary
            else vocabulary
            for vocabulary in vocabularies
        ]
    names = [domain.name for domain in blueprint.domains]
    vocabularies = vocabularies or [VocabularyConfig(MAIN_VOCABULARY, blueprint.config.model.vocab_size, "", names)]
    return [*vocabularies, VocabularyConfig(new.name, new.tokenizer.vocab_size, "", [new.name])]


def _with_vocabulary(blueprint: Blueprint, name: str, tokenizer: Tokenizer, like: Domain) -> Blueprint:
    """Adds a vocabulary: its tokenizer, and rows after all others, initialised from the rows of `like` by text."""
    config = blueprint.config
    old = Vocabularies.build(config, blueprint.domains)
    parent_index = old.names.index(like.vocabulary)
    first = old.starts[parent_index]
    last = first + old.sizes[parent_index]
    mapping = VocabularyMap.between(blueprint.tokenizer_of(like), tokenizer)
    size = tokenizer.vocab_size
    hidden = config.model.hidden_size
    drawn_VH = random_rows(config.training.seed, f"word_embedding/{name}", size, hidden, config.model.init_std)

    def rows(table_VH: np.ndarray, is_moment: bool) -> np.ndarray:
        if is_moment:
            added_VH = np.zeros((size, hidden), np.float32)
        else:
            added_VH = mapping.rows(table_VH[first:last], size, drawn_VH)
        return np.concatenate([table_VH, added_VH])

    change = DenseChange((old.num_rows + size, hidden), rows)
    return replace(
        blueprint,
        tokenizers={**blueprint.tokenizers, name: tokenizer},
        dense=blueprint.with_token_tables(change),
    )


def _added_domain_config(
    blueprint: Blueprint, new: NewDomain, parent: Domain, tokenizer: Tokenizer
) -> AddedDomainConfig:
    """Returns the entry of domains.added for the new domain."""
    preset_domains = {domain.name: domain for preset in PRESETS.values() for domain in preset}
    known = preset_domains.get(new.name)
    tokens = new.control_tokens
    kind = new.kind or (known.kind if known else parent.kind if new.like else "monolingual")
    if not tokens and known and known.kind == kind and all(map(tokenizer.has_control, known.control_tokens)):
        tokens = known.control_tokens
    return AddedDomainConfig(new.name, kind, list(tokens or _free_tokens(blueprint.domains, new, kind, tokenizer)))


def _free_tokens(domains: tuple[Domain, ...], new: NewDomain, kind: str, tokenizer: Tokenizer) -> list[str]:
    """Returns reserved control tokens of the tokenizer that no domain uses."""
    num_tokens = 2 if kind == "bilingual" else 1
    used = () if new.tokenizer else {token for domain in domains for token in domain.control_tokens}
    free = [token for token in reserved_control_tokens() if token not in used and tokenizer.has_control(token)]
    if len(free) < num_tokens:
        raise ConfigError(
            f"domain {new.name!r} needs {num_tokens} control token{'s' * (num_tokens > 1)} of its own, but the "
            f"tokenizer has {len(free)} reserved ones left; name those of another domain with --control-token, or give "
            "the domain a vocabulary of its own with --tokenizer"
        )
    return free[:num_tokens]
