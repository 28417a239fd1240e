"""The load that a routing table gives each expert on real text, known before any training.

Counting, the figures made from the counts, and their text and JSON forms live here; the picture is in `plot.py`.
Every load is relative: an expert with load 1 gets the mean, tokens / experts of its domain's group.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mindpangu.errors import RoutingError
from mindpangu.routing.assignment import grouping_overlap, most_frequent_tokens
from mindpangu.routing.table import RoutingTable

_CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True, eq=False)
class TextLoad:
    """The tokens of one text that each expert of a group gets: `tokens_E`, int64 [E]."""

    tokens_E: np.ndarray

    @property
    def relative_E(self) -> np.ndarray:
        """float64 [E]: load of each expert over the mean; NaN if the text is empty."""
        mean = self.tokens_E.mean()
        return self.tokens_E / mean if mean else np.full(self.tokens_E.size, math.nan)

    @property
    def max_over_mean(self) -> float:
        """Load of the fullest expert: 1 is perfect balance, E is everything on one expert."""
        return float(self.relative_E.max())

    @property
    def coefficient_of_variation(self) -> float:
        """Standard deviation of the experts' loads over their mean."""
        return float(self.relative_E.std())

    @property
    def dead_experts(self) -> int:
        """Experts that no token of the text reaches."""
        return int((self.tokens_E == 0).sum())


@dataclass(frozen=True)
class GroupLoad:
    """One domain's group of experts in one layer.

    Attributes:
        domain, layer: whose group; layers are counted from the lowest RRE layer, from 0.
        train, heldout: load on the training text and on the held-out text.
        step_mean, step_p99: max/mean within one step, its mean and 99th percentile over the steps.
    """

    domain: str
    layer: int
    train: TextLoad
    heldout: TextLoad
    step_mean: float
    step_p99: float


@dataclass(frozen=True)
class HotToken:
    """A token id that alone exceeds the mean load of an expert: no table can bring its expert below `multiple`."""

    token: int
    multiple: float


@dataclass(frozen=True)
class LoadStatistics:
    """What `compute_statistics` found.

    Attributes:
        assignment: of the table: "random" or "balanced".
        digest: of the table.
        tokens_per_step: tokens of one domain in one step, the window of the per-step figures.
        groups: one for each domain and layer, the layers of a domain one after the other.
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
        """One domain's groups, lowest layer first."""
        return tuple(group for group in self.groups if group.domain == domain_name)

    def summary(self) -> str:
        """One line: means over layers and domains, and the worst of what may not happen."""
        figures = {
            "train": [group.train.max_over_mean for group in self.groups],
            "held out": [group.heldout.max_over_mean for group in self.groups],
            f"per {self.tokens_per_step:,} tokens": [group.step_mean for group in self.groups],
        }
        loads = ", ".join(f"{name} {_mean_of_known(values)}" for name, values in figures.items())
        dead = max(group.train.dead_experts for group in self.groups)
        overlap = max((value for values in self.overlap.values() for value in values), default=math.nan)
        return (
            f"expected load ({self.assignment}), max/mean: {loads}; at most {dead} dead experts in a group; "
            f"layers coincide {format_load(overlap)} × chance at most"
        )

    def format_table(self, spell: Callable[[int], str] | None = None) -> str:
        """A readable table, one row for each domain and layer, then the hot tokens and the summary.

        Args:
            spell: token id → its piece, to show what the hot tokens are.
        """
        lines = [
            f"{'':>20} {'max/mean':^41} {'variation':^17} {'dead experts':>16}",
            f"{'domain':>14} {'layer':>5} {'train':>9} {'held out':>9} {'step mean':>11} {'step p99':>9} "
            f"{'train':>8} {'held out':>8} {'train':>7} {'held out':>8}",
        ]
        for group in self.groups:
            train, heldout = group.train, group.heldout
            figures = (
                (train.max_over_mean, 9),
                (heldout.max_over_mean, 9),
                (group.step_mean, 11),
                (group.step_p99, 9),
                (train.coefficient_of_variation, 8),
                (heldout.coefficient_of_variation, 8),
            )
            columns = " ".join(f"{format_load(value):>{width}}" for value, width in figures)
            dead = f"{train.dead_experts:>7} {heldout.dead_experts:>8}"
            lines.append(f"{group.domain:>14} {group.layer:>5} {columns} {dead}")
        for domain, tokens in self.hot_tokens.items():
            for hot in tokens:
                piece = f" {spell(hot.token)!r}" if spell else ""
                lines.append(f"{domain}: token {hot.token}{piece} alone is {hot.multiple:.2f} × the mean load")
        return "\n".join([*lines, self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able values; what an empty text leaves undefined is None."""
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
    """Counts the load of every expert of the domains in `train_tokens`.

    Args:
        table: may hold further domains, which are left out.
        train_tokens: domain name → integers [T], the training text in stored order; may be memory-mapped.
        heldout_tokens: the same for the held-out text; an empty or missing one gives NaN figures.
        tokens_per_step: tokens of one domain in a step. Steps are cut from the training text in stored order; an
            incomplete last one counts only if it is the only one. Consecutive text repeats its words, so steps of
            shuffled samples are a little better balanced than these.

    Raises:
        RoutingError: no training text, or a token id that the table does not know.
    """
    if tokens_per_step < 1:
        raise RoutingError(f"tokens_per_step is {tokens_per_step}; it must be at least 1")
    groups: list[GroupLoad] = []
    hot_tokens, overlap = {}, {}
    for domain, train in train_tokens.items():
        if len(train) == 0:
            raise RoutingError(f"domain {domain!r} has no training tokens to measure the load on; see data.corpus")
        train_counts_V = count_tokens(train, table.vocab_size(domain), domain)
        heldout_counts_V = count_tokens(heldout_tokens.get(domain, ()), table.vocab_size(domain), domain)
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
    """int64 [V]: how often each token id occurs in integers [T], read a piece at a time.

    Raises:
        RoutingError: a token id that is negative or not below V.
    """
    counts_V = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = np.asarray(tokens[start : start + _CHUNK_TOKENS])
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= vocab_size:
            raise RoutingError(
                f"domain {domain_name!r} holds token id {lowest if lowest < 0 else highest}, but its vocabulary has "
                f"{vocab_size} ids; the text was tokenized with another tokenizer"
            )
        counts_V += np.bincount(chunk, minlength=vocab_size)
    return counts_V


def format_load(value: float) -> str:
    """A figure with two decimals, or a dash if an empty text leaves it undefined."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def _text_load(experts_V: np.ndarray, num_experts: int, counts_V: np.ndarray) -> TextLoad:
    # float64 weights are exact up to 2^53 tokens.
    return TextLoad(np.bincount(experts_V, weights=counts_V, minlength=num_experts).astype(np.int64))


def _step_loads(
    experts_V: np.ndarray, num_experts: int, tokens: np.ndarray, tokens_per_step: int
) -> Iterator[np.ndarray]:
    """max/mean of each step, float64 [steps], a piece of the text at a time."""
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
        "dead_experts": load.dead_experts,
    }


def _known_or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_known(values: list[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return format_load(sum(known) / len(known) if known else math.nan)
