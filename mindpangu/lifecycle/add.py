"""Entering a new domain into a model: its name, its control tokens, and perhaps a vocabulary of its own.

What its experts are is said afterwards (`domains.py`).
"""

from dataclasses import dataclass, replace

import numpy as np

from mindpangu.checkpoint.vocabulary import VocabularyMap, random_rows
from mindpangu.config.schema import AddedDomainConfig, ParallelismConfig, VocabularyConfig
from mindpangu.domains import MAIN_VOCABULARY, PRESETS, Domain, known_domains
from mindpangu.errors import ConfigError
from mindpangu.lifecycle.blueprint import Blueprint, DenseChange
from mindpangu.lifecycle.domains import unless_all
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tokenizer import Tokenizer, reserved_control_tokens


@dataclass(frozen=True)
class NewDomain:
    """What is wanted of a domain that is added.

    Attributes:
        name: its name.
        kind: "monolingual", "bilingual" or "code"; "" takes that of PanGu-Σ's domain of this name, else that of `like`,
            else "monolingual".
        control_tokens: those that open the parts of its documents; empty takes those of PanGu-Σ's domain of this name
            where the tokenizer has them, else reserved ones that no other domain has.
        tokenizer: of a vocabulary of its own; None shares the vocabulary of `like`.
        like: a domain of the model; "" stands for the first one.
    """

    name: str
    kind: str = ""
    control_tokens: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    like: str = ""


def add_domain(blueprint: Blueprint, new: NewDomain) -> tuple[Blueprint, Domain]:
    """A blueprint whose configuration has one more domain; its content is the caller's to give.

    Raises:
        ConfigError: a domain of this name is there, or there is no control token for it.
        TokenizerError: the tokenizer lacks a control token that is named.
    """
    blueprint.require_experts()
    if new.name in (domain.name for domain in blueprint.domains):
        raise ConfigError(f"the model has a domain {new.name!r} already; `experts replace` or `copy` change one")
    like = blueprint.domain(new.like) if new.like else blueprint.domains[0]
    config, names = blueprint.config, [*(domain.name for domain in blueprint.domains), new.name]
    section = replace(config.domains, vocabularies=_vocabularies(blueprint, new, like))
    if new.name not in known_domains(config):
        tokenizer = new.tokenizer or blueprint.tokenizer_of(like)
        section = replace(section, added=[*section.added, _described(blueprint, new, like, tokenizer)])
    elif new.kind or new.control_tokens:
        raise ConfigError(
            f"domain {new.name!r} is known: its kind and control tokens are those of {section.preset} or "
            "domains.added; leave them out, or choose another name"
        )
    data = replace(config.data, domain_groups=1)  # groups of domains that had equal weights may not have them now
    if data.mixture:
        data = replace(data, mixture={**data.mixture, new.name: 0.0})
    if new.tokenizer is not None:
        blueprint = _with_rows(blueprint, new.name, new.tokenizer, like)
    section = replace(section, names=unless_all(config, section, names))
    config = replace(config, domains=section, data=data, parallelism=ParallelismConfig())
    blueprint = replace(blueprint, config=config)
    domain = blueprint.domain(new.name)
    for token in domain.control_tokens:
        blueprint.tokenizer_of(domain).control_id(token)
    return blueprint, domain


def _vocabularies(blueprint: Blueprint, new: NewDomain, like: Domain) -> list[VocabularyConfig]:
    """The vocabularies with the domain: in that of another one, or in a new one after all others."""
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


def _with_rows(blueprint: Blueprint, name: str, tokenizer: Tokenizer, like: Domain) -> Blueprint:
    """Adds a vocabulary: its tokenizer, and its rows after all others, initialised by text from those of `like`."""
    config, former = blueprint.config, Vocabularies.build(blueprint.config, blueprint.domains)
    at = former.names.index(like.vocabulary)
    mapping = VocabularyMap.between(blueprint.tokenizer_of(like), tokenizer)
    size, hidden = tokenizer.vocab_size, config.model.hidden_size
    drawn_VH = random_rows(config.training.seed, f"word_embedding/{name}", size, hidden, config.model.init_std)

    def rows(table_VH: np.ndarray, is_moment: bool) -> np.ndarray:
        old_VH = table_VH[former.starts[at] : former.starts[at] + former.sizes[at]]
        added_VH = np.zeros((size, hidden), np.float32) if is_moment else mapping.rows(old_VH, size, drawn_VH)
        return np.concatenate([table_VH, added_VH])

    change = DenseChange((former.num_rows + size, hidden), rows)
    return replace(
        blueprint,
        tokenizers={**blueprint.tokenizers, name: tokenizer},
        dense=blueprint.with_token_tables(change),
    )


def _described(blueprint: Blueprint, new: NewDomain, parent: Domain, tokenizer: Tokenizer) -> AddedDomainConfig:
    """The domain's entry in the configuration."""
    everywhere = {domain.name: domain for preset in PRESETS.values() for domain in preset}
    known, tokens = everywhere.get(new.name), new.control_tokens
    kind = new.kind or (known.kind if known else parent.kind if new.like else "monolingual")
    if not tokens and known and known.kind == kind and all(map(tokenizer.has_control, known.control_tokens)):
        tokens = known.control_tokens
    return AddedDomainConfig(new.name, kind, list(tokens or _reserved(blueprint.domains, new, kind, tokenizer)))


def _reserved(domains: tuple[Domain, ...], new: NewDomain, kind: str, tokenizer: Tokenizer) -> list[str]:
    """Control tokens of the tokenizer that no domain has."""
    number = 2 if kind == "bilingual" else 1
    used = () if new.tokenizer else {token for domain in domains for token in domain.control_tokens}
    free = [token for token in reserved_control_tokens() if token not in used and tokenizer.has_control(token)]
    if len(free) < number:
        raise ConfigError(
            f"domain {new.name!r} needs {number} control token{'s' * (number > 1)} of its own, and the tokenizer has "
            f"{len(free)} reserved ones left; name those of another domain with --control-token, or give the domain an "
            "vocabulary of its own with --tokenizer"
        )
    return free[:number]
