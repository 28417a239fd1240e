"""The domains of a model: their kinds of text, their control tokens, and their numbers of experts.

Domains are the first level of PanGu-Σ's routing: every sample belongs to one domain, and its tokens only reach that
domain's group of experts. The paper names 4 major domains and 36 others (26 natural languages, 6 programming languages,
finance, health, law, poetry). It does not say which languages, or how the control tokens are spelled: those choices are
ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mindpangu.config import Config
from mindpangu.config.checks import check_names
from mindpangu.display import short_repr
from mindpangu.errors import ConfigError

END_OF_TEXT = "<eot>"
PADDING = "<pad>"
CHINESE = "<cn>"
ENGLISH = "<en>"

_LANGUAGES = "ar bg cs da de el es fa fi fr he hi hu id it ja ko nl pl pt ro ru sv th tr vi".split()
_PROGRAMMING_LANGUAGES = "c cpp go javascript php rust".split()
_CHINESE_TOPICS = "finance health law poetry".split()

MAIN_VOCABULARY = "main"
"""Name of the vocabulary of a model that has only one. Files are named after it, so it must not change."""

# kind → (allowed numbers of control tokens, the same in words)
_CONTROL_TOKENS = {
    "monolingual": (range(2), "one or none"),
    "bilingual": (range(2, 3), "two, for the Chinese part and the English part"),
    "code": (range(1, 1000), "one for each programming language"),
}
_SPECIAL_TOKENS = {
    END_OF_TEXT: "ends every document",
    PADDING: "is padding",
    "<unk>": "is the unknown token of the tokenizer",
    "<s>": "begins a text in many tokenizers",
    "</s>": "ends a text in many tokenizers",
}
_LONGEST_TOKEN = 100  # characters
_ALL = "all"
_EXPERTS = "experts:"


@dataclass(frozen=True)
class Domain:
    """One domain of a run.

    Attributes:
        name: unique name, which appears in records, tables, and expert files.
        kind: "monolingual", "bilingual", or "code"; decides how a record becomes a document (`data.formats`).
        control_tokens: tokens that open the parts of a document. Monolingual: one or none. Bilingual: (Chinese,
            English). Code: one per programming language, the default first.
        num_experts: size of the domain's expert group, the same in every RRE layer.
        vocabulary: name of the vocabulary that its tokens belong to.
    """

    name: str
    kind: str
    control_tokens: tuple[str, ...]
    num_experts: int = 1
    vocabulary: str = MAIN_VOCABULARY


_SIGMA_4 = (
    Domain("bilingual", "bilingual", (CHINESE, ENGLISH)),
    Domain("zh", "monolingual", (CHINESE,)),
    Domain("en", "monolingual", (ENGLISH,)),
    Domain("code", "code", ("<python>", "<java>")),
)
_SIGMA_40 = (
    *_SIGMA_4,
    *(Domain(name, "monolingual", (f"<{name}>",)) for name in _LANGUAGES),
    *(Domain(f"code_{name}", "code", (f"<{name}>",)) for name in _PROGRAMMING_LANGUAGES),
    *(Domain(name, "monolingual", (CHINESE,)) for name in _CHINESE_TOPICS),
)
# PanGu-α has neither domains nor language tokens: a document is its text and <eot>
_PANGU_ALPHA = (Domain("zh", "monolingual", ()),)
PRESETS: dict[str, tuple[Domain, ...]] = {"sigma_4": _SIGMA_4, "sigma_40": _SIGMA_40, "pangu_alpha": _PANGU_ALPHA}


def build_domains(config: Config) -> tuple[Domain, ...]:
    """Returns the run's domains: the preset's in its order, then the added ones. A domain's position is its domain id.

    Raises:
        ConfigError: a key names an unknown domain, or the vocabularies do not cover the domains.
    """
    section = config.domains
    known = known_domains(config)
    names = section.names or list(known)
    if len(set(names)) != len(names):
        raise ConfigError(f"domains.names is {names}; a domain may appear once")
    _require_known("domains.names", names, known)
    _require_known("domains.experts", section.experts, names)
    _require_known("data.mixture", config.data.mixture, names)
    for index, phase in enumerate(config.data.phases):
        _require_known(f"data.phases[{index}].mixture", phase.mixture, names)
    for name, size in section.experts.items():
        if not 1 <= size <= 65535:
            raise ConfigError(f"domains.experts.{name} is {size}; allowed: >= 1 and <= 65535")
    vocabularies = _assign_vocabularies(config, names)
    domains = tuple(
        Domain(
            name=domain.name,
            kind=domain.kind,
            control_tokens=domain.control_tokens,
            num_experts=section.experts.get(domain.name, section.experts_per_domain),
            vocabulary=vocabularies[domain.name],
        )
        for domain in known.values()
        if domain.name in names
    )
    trained_domains(config, domains)
    return domains


def trained_domains(config: Config, domains: Sequence[Domain]) -> frozenset[int] | None:
    """Returns the ids of the domains to whose experts training.train limits the training, or None to train everything.

    Raises:
        ConfigError: the value is neither "all" nor "experts:" and domains of this run, or the model has no experts.
    """
    value = config.training.train
    if value == _ALL:
        return None
    names = [name.strip() for name in value.removeprefix(_EXPERTS).split(",")]
    if not value.startswith(_EXPERTS) or not all(names):
        raise ConfigError(
            f"training.train is {value!r}; allowed: {_ALL}, or {_EXPERTS} followed by domains, e.g. experts:zh,code"
        )
    if config.model.rre_layers == 0:
        raise ConfigError(
            f"training.train is {value!r}, but a dense model (model.rre_layers 0) has no experts; set it to {_ALL}"
        )
    _require_known("training.train", names, [domain.name for domain in domains])
    return frozenset(index for index, domain in enumerate(domains) if domain.name in names)


def known_domains(config: Config) -> dict[str, Domain]:
    """Returns name → domain for all domains that a run can choose from: its preset's, then the added ones.

    Raises:
        ConfigError: an added domain has an invalid or duplicate name, or control tokens that do not fit its kind.
    """
    check_names(config)
    known = {domain.name: domain for domain in PRESETS[config.domains.preset]}
    for index, added in enumerate(config.domains.added):
        key = f"domains.added[{index}]"
        tokens = tuple(added.control_tokens)
        if added.name in known:
            raise ConfigError(f"{key}.name is {added.name!r}, which another domain has; choose another name")
        allowed, words = _CONTROL_TOKENS[added.kind]
        if len(tokens) not in allowed:
            raise ConfigError(f"{key}.control_tokens of {added.name!r} are {list(tokens)}; {added.kind} takes {words}")
        for position, token in enumerate(tokens):
            problem = "appears twice" if token in tokens[:position] else _token_problem(token)
            if problem:
                raise ConfigError(
                    f"{key}.control_tokens of {added.name!r} has {short_repr(token)}, which {problem}; choose another "
                    "token"
                )
        known[added.name] = Domain(added.name, added.kind, tokens)
    return known


def _token_problem(token: str) -> str | None:
    """Says why a control token cannot be used; None if it can. Domains of one language may share a token."""
    if token in _SPECIAL_TOKENS:
        return _SPECIAL_TOKENS[token]
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return "is the tokenizer's token for a byte"
    if not token or not token.isprintable() or any(character.isspace() or character == "▁" for character in token):
        return "is empty, or contains a blank, a ▁, or a character that cannot be printed"
    if len(token) > _LONGEST_TOKEN:
        return f"has {len(token):,} characters (allowed: at most {_LONGEST_TOKEN})"
    return None


def control_tokens_of(domains: Sequence[Domain]) -> list[str]:
    """Returns the control tokens that the domains need, without duplicates: `<eot>`, then theirs in their order."""
    tokens = [END_OF_TEXT]
    for domain in domains:
        tokens += [token for token in domain.control_tokens if token not in tokens]
    return tokens


def domain_named(domains: Sequence[Domain], name: str) -> tuple[int, Domain]:
    """Returns (domain id, domain) by name. Raises ConfigError with the known names if there is no such domain."""
    for index, domain in enumerate(domains):
        if domain.name == name:
            return index, domain
    raise ConfigError(
        f"unknown domain {short_repr(name)}; this model has: {', '.join(domain.name for domain in domains)}"
    )


def _require_known(key: str, names: Sequence[str] | dict, known: Sequence[str] | dict) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{key} names {short_repr(name)}; known domains: {', '.join(known)}")


def _assign_vocabularies(config: Config, names: Sequence[str]) -> dict[str, str]:
    """Returns domain name → name of its vocabulary."""
    vocabularies = config.domains.vocabularies
    if not vocabularies:
        return dict.fromkeys(names, MAIN_VOCABULARY)
    owner: dict[str, str] = {}
    for vocabulary in vocabularies:
        if [other.name for other in vocabularies].count(vocabulary.name) > 1:
            raise ConfigError(f"domains.vocabularies has the name {vocabulary.name!r} twice; rename one")
        _require_known(f"domains.vocabularies {vocabulary.name}", vocabulary.domains, names)
        for name in vocabulary.domains:
            if name in owner:
                raise ConfigError(f"domain {name!r} is in two vocabularies: {owner[name]} and {vocabulary.name}")
            owner[name] = vocabulary.name
    missing = [name for name in names if name not in owner]
    if missing:
        raise ConfigError(f"domains.vocabularies leaves out {', '.join(missing)}; every domain needs a vocabulary")
    return owner
