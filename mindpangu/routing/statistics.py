"""Measures the load that a routing table puts on each expert for real text, before any training.

This module counts tokens, computes figures from the counts, and formats them as text and JSON; `plot.py` plots them.
All loads are relative to the mean: an expert with load 1 gets (number of tokens) / (experts of its domain's group).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mindpangu.errors import RoutingError
from mindpangu.routing.assignment import MAX_OVERLAP, grouping_overlap, most_frequent_tokens
from mindpangu.routing.table import RoutingTable

_CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True, eq=False)
class TextLoad:
    """Number of tokens that each expert of a group gets from one text: `tokens_E`, int64 [E]."""

    tokens_E: np.ndarray

    @property
    def relative_E(self) -> np.ndarray:
        """float64 [E]: load of each expert relative to the mean; NaN if the text is empty."""
        mean = self.tokens_E.mean()
        return self.tokens_E / mean if mean else np.full(self.tokens_E.size, math.nan)

    @property
    def max_over_mean(self) -> float:
        """Load of the most loaded expert: 1 is perfect balance, E means that one expert gets every token."""
        return float(self.relative_E.max())

    @property
    def coefficient_of_variation(self) -> float:
        """Standard deviation of the experts' loads divided by their mean."""
        return float(self.relative_E.std())

    @property
    def unused_experts(self) -> int:
        """Number of experts that no token of the text reaches."""
        return int((self.tokens_E == 0).sum())


@dataclass(frozen=True)
class GroupLoad:
    """Load of one domain's group of experts in one layer.

    Attributes:
        domain: name of the domain.
        layer: index of the RRE layer, counted from the lowest, from 0.
        train, heldout: load on the training text and on the held-out text.
        step_mean, step_p99: mean and 99th percentile over the steps of max/mean within a step.
    """

    domain: str
    layer: int
    train: TextLoad
    heldout: TextLoad
    step_mean: float
    step_p99: float


@dataclass(frozen=True)
class HotToken:
    """A token id that alone exceeds an expert's mean load. In any table its expert's load is at least `multiple`."""

    token: int
    multiple: float


@dataclass(frozen=True)
class LoadStatistics:
    """Result of `compute_statistics`.

    Attributes:
        assignment: the table's assignment, "random" or "balanced".
        digest: the table's digest.
        tokens_per_step: tokens of one domain in one step, the window of the per-step figures.
        groups: load per domain and layer, ordered by domain, then by layer.
        hot_tokens: domain → its hot tokens in the training text, hottest first.
        overlap: domain → `grouping_overlap` of its 200 most frequent tokens for every pair of layers.
    """

    assignment: str
    digest: str
    tokens_per_step: int
    groups: tuple[GroupLoad, ...]
    hot_tokens: dict[str, tuple[HotToken, ...]]
    overlap: dict[str, tuple[float, ...]]

    def of_domain(self, domain_name: str) -> tuple[GroupLoad, ...]:
        """Returns one domain's groups, lowest layer first."""
        return tuple(group for group in self.groups if group.domain == domain_name)

    def summary(self) -> str:
        """Returns one line: the mean loads over layers and domains, and the worst cases of unused experts and
        overlap."""
        figures = {
            "train": [group.train.max_over_mean for group in self.groups],
            "held out": [group.heldout.max_over_mean for group in self.groups],
            f"per {self.tokens_per_step:,} tokens": [group.step_mean for group in self.groups],
        }
        loads = ", ".join(f"{name} {_mean_of_known(values)}" for name, values in figures.items())
        unused = max(group.train.unused_experts for group in self.groups)
        parts = [
            f"expected load ({self.assignment}), max/mean: {loads}",
            f"up to {unused} unused experts in a group" if unused else "no unused experts",
        ]
        overlaps = [value for values in self.overlap.values() for value in values]
        if overlaps:
            similarity = "independently" if max(overlaps) <= MAX_OVERLAP else "similarly"
            parts.append(f"layers group tokens {similarity} ({format_load(max(overlaps))} × chance)")
        return "; ".join(parts)

    def format_table(self, spell: Callable[[int], str] | None = None) -> str:
        """Formats a table with one row per domain and layer, then the hot tokens and the summary.

        Args:
            spell: token id → its piece, to show the hot tokens as text.
        """
        lines = [
            f"{'':>20} {'max/mean':^41} {'variation':^17} {'unused experts':>16}",
            f"{'domain':>14} {'layer':>5} {'train':>9} {'held out':>9} {'step mean':>11} {'step p99':>9} "
            f"{'train':>8} {'held out':>8} {'train':>7} {'held out':>8}",
        ]
        for group in self.groups:
            train = group.train
            heldout = group.heldout
            figures = (
                (train.max_over_mean, 9),
                (heldout.max_over_mean, 9),
                (group.step_mean, 11),
                (group.step_p99, 9),
                (train.coefficient_of_variation, 8),
                (heldout.coefficient_of_variation, 8),
            )
            columns = " ".join(f"{format_load(value):>{width}}" for value, width in figures)
            unused = f"{train.unused_experts:>7} {heldout.unused_experts:>8}"
            lines.append(f"{group.domain:>14} {group.layer:>5} {columns} {unused}")
        for domain, tokens in self.hot_tokens.items():
            for hot in tokens:
                piece = f" {spell(hot.token)!r}" if spell else ""
                lines.append(f"{domain}: token {hot.token}{piece} alone is {hot.multiple:.2f} × the mean load")
        return "\n".join([*lines, self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics as JSON values. Figures that an empty text leaves undefined are None."""
        return {
            "assignment": self.assignment,
            "digest": self.digest,
            "tokens_per_step": self.tokens_per_step,
            "groups": [
                {
                    "domain": group.domain,
                    "layer": group.layer,
                    "train": _text_to_dict(group.train),
                    "heldout": _text_to_dict(group.heldout),
                    "step_mean": group.step_mean,
                    "step_p99": group.step_p99,
                }
                for group in self.groups
            ],
            "hot_tokens": {
                domain: [{"token": hot.token, "multiple": hot.multiple} for hot in tokens]
                for domain, tokens in self.hot_tokens.items()
            },
            "overlap": {domain: list(values) for domain, values in self.overlap.items()},
        }


def compute_statistics(
    table: RoutingTable,
    train_tokens: Mapping[str, np.ndarray],
    heldout_tokens: Mapping[str, np.ndarray],
    tokens_per_step: int,
) -> LoadStatistics:
    """Measures the load of every expert of the domains in `train_tokens`.

    Args:
        table: the routing table. Domains without training text are left out.
        train_tokens: domain name → integers [T], the training text in stored order; may be memory-mapped.
        heldout_tokens: the same for the held-out text. Figures of a domain without any are NaN.
        tokens_per_step: tokens of one domain in a step. Steps are cut from the training text in stored order; an
            incomplete last step counts only if it is the only one. Consecutive text repeats its words, so real steps,
            which shuffle samples, are slightly better balanced.

    Raises:
        RoutingError: `tokens_per_step` is below 1, or a domain has no training text or a token id that is not in the
            table.
    """
    if tokens_per_step < 1:
        raise RoutingError(f"tokens_per_step is {tokens_per_step}; it must be at least 1")
    groups: list[GroupLoad] = []
    hot_tokens: dict[str, tuple[HotToken, ...]] = {}
    overlap: dict[str, tuple[float, ...]] = {}
    for domain, train in train_tokens.items():
        if len(train) == 0:
            raise RoutingError(f"domain {domain!r} has no training tokens to measure the load on; see data.corpus")
        train_counts_V = count_tokens(train, table.vocab_size(domain), domain)
        heldout = heldout_tokens.get(domain, np.zeros(0, np.int64))
        heldout_counts_V = count_tokens(heldout, table.vocab_size(domain), domain)
        num_experts = table.num_experts(domain)
        for layer in range(table.num_layers):
            experts_V = table.array(layer, domain)
            steps = np.concatenate(list(_step_loads(experts_V, num_experts, train, tokens_per_step)))
            groups.append(
                GroupLoad(
                    domain=domain,
                    layer=layer,
                    train=_text_load(experts_V, num_experts, train_counts_V),
                    heldout=_text_load(experts_V, num_experts, heldout_counts_V),
                    step_mean=float(steps.mean()),
                    step_p99=float(np.percentile(steps, 99)),
                )
            )
        hot_tokens[domain] = _hot_tokens(train_counts_V, num_experts)
        frequent = most_frequent_tokens(train_counts_V)
        overlap[domain] = tuple(
            grouping_overlap(table.array(one, domain), table.array(other, domain), frequent)
            for one, other in combinations(range(table.num_layers), 2)
        )
    return LoadStatistics(table.assignment, table.digest, tokens_per_step, tuple(groups), hot_tokens, overlap)


def count_tokens(tokens: np.ndarray, vocab_size: int, domain_name: str) -> np.ndarray:
    """Returns int64 [V]: occurrences of each token id in `tokens`, integers [T], which are read in chunks.

    Raises:
        RoutingError: a token id is negative or not below V.
    """
    counts_V = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = np.asarray(tokens[start : start + _CHUNK_TOKENS])
        lowest = int(chunk.min())
        highest = int(chunk.max())
        if lowest < 0 or highest >= vocab_size:
            raise RoutingError(
                f"domain {domain_name!r} contains token id {lowest if lowest < 0 else highest}, but its vocabulary has "
                f"{vocab_size} ids; the text was tokenized with another tokenizer"
            )
        counts_V += np.bincount(chunk, minlength=vocab_size)
    return counts_V


def format_load(value: float) -> str:
    """Formats a figure with two decimals, or as a dash if an empty text leaves it undefined."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def _text_load(experts_V: np.ndarray, num_experts: int, counts_V: np.ndarray) -> TextLoad:
    # float64 counts are exact up to 2^53 tokens
    return TextLoad(np.bincount(experts_V, weights=counts_V, minlength=num_experts).astype(np.int64))


def _step_loads(
    experts_V: np.ndarray, num_experts: int, tokens: np.ndarray, tokens_per_step: int
) -> Iterator[np.ndarray]:
    """Yields max/mean of each step as float64 [steps], for one chunk of the text at a time."""
    tokens_per_step = min(tokens_per_step, len(tokens))
    num_steps = len(tokens) // tokens_per_step
    at_once = max(1, _CHUNK_TOKENS // tokens_per_step)
    for first in range(0, num_steps, at_once):
        last = min(first + at_once, num_steps)
        experts = experts_V[tokens[first * tokens_per_step : last * tokens_per_step]].reshape(last - first, -1)
        cells = experts + num_experts * np.arange(last - first)[:, None]
        loads = np.bincount(cells.ravel(), minlength=num_experts * (last - first)).reshape(-1, num_experts)
        yield loads.max(axis=1) * num_experts / tokens_per_step


def _hot_tokens(counts_V: np.ndarray, num_experts: int) -> tuple[HotToken, ...]:
    multiples_V = counts_V * num_experts / counts_V.sum()
    hottest_first = most_frequent_tokens(counts_V, limit=num_experts)
    return tuple(HotToken(int(t), float(multiples_V[t])) for t in hottest_first if multiples_V[t] > 1)


def _text_to_dict(load: TextLoad) -> dict[str, Any]:
    return {
        "tokens_per_expert": load.tokens_E.tolist(),
        "max_over_mean": _known_or_none(load.max_over_mean),
        "coefficient_of_variation": _known_or_none(load.coefficient_of_variation),
        "dead_experts": load.unused_experts,  # the key of the file format
    }


def _known_or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_known(values: list[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return format_load(sum(known) / len(known) if known else math.nan)
