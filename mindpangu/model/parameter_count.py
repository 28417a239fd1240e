"""Counts the parameters of a configuration without building the model: no MindSpore, no allocation.

The formulas follow the architecture, not the code of the model, so that each can check the other.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from mindpangu.config import Config
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError

_UNITS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3))


@dataclass(frozen=True)
class ParameterCount:
    """Parameter counts.

    Attributes:
        embedding: V·H, over the rows of all vocabularies.
        head: another V·H if the head is not tied to the embedding.
        positions: S·H if positions are learned, and S·H for the queries of a query layer.
        attention: per layer 4·H², and 4·H with biases (query, key, value, output), and the augmented shortcut.
        dense_ffn: the feed-forward networks of the dense layers.
        experts: the experts of all RRE layers and domains, each as large as a feed-forward network.
        norms: two per layer and the final one, of 2·H (LayerNorm) or H (RMSNorm) parameters each.
        activated: parameters that take part in computing one token: everything but the experts, plus one expert per RRE
            layer. Includes the whole table that the head multiplies by; if there are several vocabularies, the largest.
    """

    embedding: int
    head: int
    positions: int
    attention: int
    dense_ffn: int
    experts: int
    norms: int
    activated: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embedding + self.head + self.positions + self.attention + self.dense_ffn + self.experts + self.norms

    @property
    def embedding_share(self) -> float:
        """Share of embedding and head in the total: 2·V·d / total in the tiny-model paper (arXiv 2402.02791)."""
        return (self.embedding + self.head) / self.total


def count_parameters(config: Config) -> ParameterCount:
    """Counts the parameters of a configuration.

    PanGu-α and PanGu-Σ have

        attention of a layer   4·H² + 4·H
        FFN, or one expert     2·H·F + F + H
        LayerNorms of a layer  4·H

    PanGu-π has no biases, a third matrix in the FFN (swiglu), 2·n·F for a series of n terms, 2·H²/r for the shortcut.

    PanGu-Σ 1.085T (32 dense and 8 RRE layers, H 5120, F 20480, 40 domains × 16 experts): 8 · 640 experts of 209.7 M
    are 1.0739T, everything else is 11.4 G (recipes/pangu_sigma_1t.yaml has the sources for layers and experts).

    Raises:
        ConfigError: the domains of `config` are inconsistent.
    """
    model = config.model
    domains = build_domains(config)
    hidden = model.hidden_size
    inner = model.ffn_hidden_size
    biased = int(model.biases)
    vocabulary_rows = [vocabulary.vocab_size for vocabulary in config.domains.vocabularies] or [model.vocab_size]
    inputs = 2 if model.activation == "swiglu" else 1
    ffn = (inputs + 1) * hidden * inner + biased * (inputs * inner + hidden) + 2 * model.series_terms * inner
    narrow = hidden // model.shortcut_reduction if model.shortcut_reduction else 0
    shortcut = 2 * hidden * narrow + biased * (hidden + narrow) if narrow else 0
    norm = hidden if model.norm == "rmsnorm" else 2 * hidden

    embedding = sum(vocabulary_rows) * hidden
    head = 0 if model.tied_head else embedding
    positions = ((model.position == "learned") + model.query_layer) * model.seq_length * hidden
    attention = model.num_layers * (4 * hidden**2 + biased * 4 * hidden + shortcut)
    dense_ffn = (model.num_layers - model.rre_layers) * ffn
    experts = model.rre_layers * sum(domain.num_experts for domain in domains) * ffn
    norms = (2 * model.num_layers + 1) * norm
    return ParameterCount(
        embedding=embedding,
        head=head,
        positions=positions,
        attention=attention,
        dense_ffn=dense_ffn,
        experts=experts,
        norms=norms,
        activated=max(vocabulary_rows) * hidden + positions + attention + dense_ffn + model.rre_layers * ffn + norms,
    )


def in_words(count: int) -> str:
    """Formats a count as papers do: 1.085T, 38B, 2.6B, 350M. Trillions get three decimals, values below ten one.

    >>> in_words(1_085_294_356_480)
    '1.085T'
    >>> in_words(2_624_000_000)
    '2.6B'
    """
    for unit, size in _UNITS:
        if count >= size:
            decimals = 3 if unit == "T" else 1 if count < 10 * size else 0
            return f"{count / size:.{decimals}f}{unit}"
    return str(count)


def from_words(option: str, text: str) -> int:
    """Parses a count that a user writes as 2M, 1.5B, 200000 or 2e5; at least 1.

    >>> from_words("--budget", "1.5B")
    1500000000

    Raises:
        ConfigError: the text is anything else; the message names `option`.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][0-9]{1,2})?)\s*([A-Za-z]?)\s*", text)
    sizes = dict(_UNITS) | {"": 1}
    if match and match[2].upper() in sizes:
        count = Fraction(match[1]) * sizes[match[2].upper()]
        if count >= 1 and count.denominator == 1:
            return int(count)
    raise ConfigError(f"{option} is {text!r}; allowed: a whole number above 0, as 200000, 350K, 2M or 1.5B")
