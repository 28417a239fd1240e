"""The models whose steps are timed, their batches of random tokens, and the matrix products of a step."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from mindpangu.config import Config, load_config
from mindpangu.data import Batch, equal_parts
from mindpangu.data.batch import assemble_batch
from mindpangu.domains import build_domains
from mindpangu.routing import RoutingTable

LEARNING_RATE = 5e-4  # from the first step on; at 1e-3, (c) is unstable after 25 steps


@dataclass(frozen=True)
class Case:
    """A model and the size of its step.

    Attributes:
        name: short name, e.g. "a".
        model: what it is.
        layers, routed: number of layers, and how many of them are RRE layers.
        hidden, inner, heads: H, F, N.
        length, batch: S, B.
        experts: experts of each of the four domains; 0 for a dense model.
        vocabulary: V.
    """

    name: str
    model: str
    hidden: int
    inner: int
    length: int
    batch: int
    experts: int = 0
    layers: int = 4
    routed: int = 0
    heads: int = 4
    vocabulary: int = 8000

    @property
    def shape(self) -> str:
        routed = f" RRE{self.routed} E{4 * self.experts}" if self.routed else ""
        return f"L{self.layers}{routed} H{self.hidden} F{self.inner} S{self.length} B{self.batch} V{self.vocabulary}"

    @property
    def tokens(self) -> int:
        """Number of tokens of a step."""
        return self.length * self.batch

    def config(self) -> Config:
        """Returns the configuration. A step has one domain and never skips."""
        overrides = {
            "model.num_layers": self.layers,
            "model.rre_layers": self.routed,
            "model.hidden_size": self.hidden,
            "model.ffn_hidden_size": self.inner,
            "model.num_heads": self.heads,
            "model.seq_length": self.length,
            "model.vocab_size": self.vocabulary,
            "training.local_batch_size": self.batch,
            "training.spike_sigma": 0,
            "data.domains_per_step": 1,
            "routing.assignment": "random",
            "domains.preset": "sigma_4",
            "domains.experts_per_domain": self.experts or 1,
        }
        return load_config(None, {key: str(value) for key, value in overrides.items()})

    def tokenizer(self) -> SimpleNamespace:
        """Returns a stand-in for the tokenizer."""
        return SimpleNamespace(vocab_size=self.vocabulary, digest="random tokens")

    def table(self, config: Config) -> RoutingTable | None:
        """Returns the routing table; None for a dense model."""
        if not self.routed:
            return None
        domains = build_domains(config)
        frequencies = {domain.name: np.ones(self.vocabulary, np.int64) for domain in domains}
        return RoutingTable.build(domains, frequencies, self.routed, config.routing)

    def batches(self) -> Iterator[Batch]:
        """Yields batches without end. Tokens are Zipf-distributed, like text; domains take turns."""
        rng = np.random.default_rng(0)
        step = 0
        while True:
            # from 1 on, because padding would not count as a target
            windows = np.minimum(rng.zipf(1.2, (self.batch, self.length + 1)), self.vocabulary - 1)
            domain = step % 4 if self.routed else 0
            yield assemble_batch(
                list(windows.astype(np.int32)),
                np.zeros((self.batch, 2), np.int64),
                (domain,),
                equal_parts(self.batch, 1),
                self.length,
                0,
                0,
                False,
            )
            step += 1

    def products(self) -> Iterator[tuple["Product", float]]:
        """Yields the matrix products of a step, each with the number of times that it is computed.

        Causal attention needs half of its products. The forward pass of the dense half of a model with experts counts
        twice, as in a step whose experts move (`mindpangu.train.compiled`), although a step on a CPU computes it once.
        Experts count like one dense network.
        """
        recomputed = self.layers - self.routed if self.routed else 0
        matrices = {
            (self.hidden, self.hidden): 4 * self.layers,
            (self.hidden, self.inner): self.layers,
            (self.inner, self.hidden): self.layers,
        }
        attention = self.length / (2 * self.hidden)  # a head's two halved products, as parts of a matrix [H, H]
        matrices[self.hidden, self.hidden] += 2 * attention * self.layers
        for (inputs, outputs), count in matrices.items():
            again = 1 + recomputed / self.layers
            yield Product("N", "N", self.tokens, outputs, inputs), count * again
            yield Product("N", "T", self.tokens, inputs, outputs), count
            yield Product("T", "N", inputs, outputs, self.tokens), count
        yield Product("N", "T", self.tokens, self.vocabulary, self.hidden), 1
        yield Product("N", "N", self.tokens, self.hidden, self.vocabulary), 1
        yield Product("T", "N", self.vocabulary, self.hidden, self.tokens), 1


@dataclass(frozen=True)
class Product:
    """a · b = [m, n] with the inner size k; a or b may be transposed in memory ("T")."""

    transpose_a: str
    transpose_b: str
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


CASES = (
    Case("a", "dense PanGu-α", hidden=256, inner=1024, length=256, batch=8),
    Case("b", "dense PanGu-α", hidden=512, inner=2048, length=1024, batch=2),
    Case("c", "PanGu-Σ", hidden=256, inner=1024, length=128, batch=8, routed=2, experts=16),
    Case("d", "PanGu-Σ", hidden=512, inner=2048, length=128, batch=8, routed=2, experts=16),
    Case("e", "PanGu-Σ", hidden=256, inner=1024, length=128, batch=8, routed=2, experts=64),
)


def smaller(case: Case) -> Case:
    """Returns the case with everything small, to test the mechanics."""
    return dataclasses.replace(
        case, hidden=32, inner=64, heads=2, length=16, batch=2, vocabulary=300, experts=min(case.experts, 4)
    )
