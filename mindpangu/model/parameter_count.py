"""How many parameters a configuration has, from the configuration alone: no MindSpore, no allocation.

The counting follows the architecture, not the code of the model, so that one can check the other.
"""

from dataclasses import dataclass

from mindpangu.config import Config
from mindpangu.domains import build_domains


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part.

    Attributes:
        embedding: V·H, the rows of all embedding slots; the output head is tied to it and adds none.
        positions: 2·S·H, the learned positions and the query positions of the query layer.
        attention: 4·H² + 4·H a layer: query, key, value, output, each with a bias.
        dense_ffn: 2·H·F + F + H a dense layer.
        experts: as many again for every expert of every RRE layer, over all domains.
        layernorm: 2·(2·H) a layer, and 2·H for the norm before the query layer.
        activated: what takes part in computing one token: everything but the experts, and one expert a RRE layer.
            The whole embedding counts, because the tied head multiplies by it; of several slots, only the largest.
    """

    embedding: int
    positions: int
    attention: int
    dense_ffn: int
    experts: int
    layernorm: int
    activated: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.positions + self.attention + self.dense_ffn + self.experts + self.layernorm


def count_parameters(config: Config) -> ParameterCount:
    """Counts the parameters of a configuration. With H hidden, F FFN, S sequence, V vocabulary:

        attention of a layer   4·H² + 4·H
        FFN, or one expert     2·H·F + F + H
        LayerNorms of a layer  4·H

    PanGu-Σ 1.085T (32 dense and 8 RRE layers, H 5120, F 20480, 40 domains × 16 experts): 8 · 640 experts of 209.7 M
    are 1.0739T, everything else is 11.4 G (which layers and experts: recipes/pangu_sigma_1t.yaml has the sources).

    Raises:
        ConfigError: the domains of `config` do not fit together.
    """
    model = config.model
    domains = build_domains(config)
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    slot_rows = [slot.vocab_size for slot in config.domains.embedding_slots] or [model.vocab_size]
    ffn_parameters = 2 * hidden * ffn + ffn + hidden

    embedding = sum(slot_rows) * hidden
    positions = 2 * model.seq_length * hidden
    attention = model.num_layers * (4 * hidden**2 + 4 * hidden)
    dense_ffn = (model.num_layers - model.rre_layers) * ffn_parameters
    experts = model.rre_layers * sum(domain.num_experts for domain in domains) * ffn_parameters
    layernorm = model.num_layers * 4 * hidden + 2 * hidden
    return ParameterCount(
        embedding=embedding,
        positions=positions,
        attention=attention,
        dense_ffn=dense_ffn,
        experts=experts,
        layernorm=layernorm,
        activated=max(slot_rows) * hidden
        + positions
        + attention
        + dense_ffn
        + model.rre_layers * ffn_parameters
        + layernorm,
    )


def in_words(count: int) -> str:
    """A count as papers print it: 1.085T, 38B, 2.6B, 350M; trillions to three decimals, else to two digits or whole.

    >>> in_words(1_085_294_356_480)
    '1.085T'
    >>> in_words(2_624_000_000)
    '2.6B'
    """
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            decimals = 3 if unit == "T" else 1 if count < 10 * size else 0
            return f"{count / size:.{decimals}f}{unit}"
    return str(count)
