"""Assigns token ids to the experts of a domain's group, one (layer, domain) at a time.

This module has the two assignments, `random` (PanGu-Σ) and `balanced` (ours), their random streams, and a measure of
how similarly two layers group tokens. `table.py` stores the result; `statistics.py` measures its load on real text.
"""

import hashlib
import heapq
import math

import numpy as np

from mindpangu.config import RoutingConfig
from mindpangu.errors import RoutingError

FREQUENT_TOKENS = 200
MAX_OVERLAP = 1.5
_MAX_DRAWS = 40


def assign_random(vocab_size: int, num_experts: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns by PanGu-Σ's Algorithm 1: shuffle the experts, deal them to the tokens, reshuffle when all are dealt.

    Every expert gets ⌈V/E⌉ or ⌊V/E⌋ token ids. Token frequencies are ignored, so the load is as uneven as the text.

    Returns:
        uint16 [V]: index of the expert inside the group.

    Raises:
        RoutingError: more experts than token ids.
    """
    _require_a_token_for_each(num_experts, vocab_size)
    num_decks = -(-vocab_size // num_experts)
    decks = np.tile(np.arange(num_experts, dtype=np.uint16), (num_decks, 1))
    return rng.permuted(decks, axis=1).ravel()[:vocab_size].copy()


def assign_balanced(
    token_counts_V: np.ndarray, num_experts: int, rng: np.random.Generator, jitter: float
) -> np.ndarray:
    """Balances the text greedily: the most frequent tokens come first, and each goes to the least loaded expert.

    This is longest-processing-time scheduling (Graham 1969). `jitter` only perturbs the order of the tokens; the true
    loads decide where each one goes. Noise on the loads themselves would make layers differ just as much, but at 0.5 it
    leaves max/mean at 1.2–1.6 instead of 1.00. Tokens that do not occur in the text are dealt last, so that experts own
    numbers of token ids that are as equal as possible.

    Args:
        token_counts_V: int64 [V], occurrences of each token id in the domain's training text.
        num_experts: E, experts in the group.
        rng: the layer's own random stream.
        jitter: standard deviation of the log-normal noise on the frequencies that order the tokens. 0 orders them
            exactly, and all layers then group the frequent tokens alike (10 × chance). Above 1 the balance suffers,
            because frequent tokens come too late for the rest to even out the loads.

    Returns:
        uint16 [V]: index of the expert inside the group. At least min(E, number of token ids seen) experts are used.

    Raises:
        RoutingError: there are more experts than token ids, or the counts are not a vector of integers ≥ 0.
    """
    counts_V = _checked_counts(token_counts_V)
    _require_a_token_for_each(num_experts, counts_V.size)

    seen = rng.permutation(np.flatnonzero(counts_V))
    noise = np.exp(jitter * rng.standard_normal(seen.size))
    order = seen[np.argsort(-counts_V[seen] * noise, kind="stable")]

    # The heap breaks ties by label. Random labels keep the most loaded experts of all layers off the same rank.
    labels_E = rng.permutation(num_experts).astype(np.uint16)
    least_loaded = [(0, label) for label in range(num_experts)]
    chosen = []
    for count in counts_V[order].tolist():
        load, label = least_loaded[0]
        heapq.heapreplace(least_loaded, (load + count, label))
        chosen.append(label)

    experts_V = np.empty(counts_V.size, np.uint16)
    experts_V[order] = labels_E[chosen]
    experts_V[counts_V == 0] = _deal_evenly(
        counts_V.size - seen.size, np.bincount(experts_V[order], minlength=num_experts), rng
    )
    return experts_V


def assign_layers(
    token_counts_V: np.ndarray, num_experts: int, num_layers: int, domain_name: str, routing: RoutingConfig
) -> np.ndarray:
    """Draws all layers of one domain. Each (seed, layer, domain name) has its own random stream.

    The overlap of independent groupings rarely exceeds 1.5 × chance with 16 experts. With 64 it often does,
    because few common pairs among 200 tokens are expected. A balanced layer that overlaps too much with a lower one is
    therefore redrawn. If no draw is good enough, the best one is kept, and the statistics show its overlap.

    Returns:
        uint16 [L, V]: index of the expert inside the domain's group. A layer does not depend on the layers above it.

    Raises:
        RoutingError: same as `assign_random` and `assign_balanced`.
    """
    counts_V = _checked_counts(token_counts_V)
    frequent = most_frequent_tokens(counts_V)
    experts_LV = np.empty((num_layers, counts_V.size), np.uint16)
    for layer in range(num_layers):
        if routing.assignment == "random":
            rng = assignment_rng(routing.seed, layer, domain_name)
            experts_LV[layer] = assign_random(counts_V.size, num_experts, rng)
            continue
        least_overlap = math.inf
        for attempt in range(_MAX_DRAWS if routing.jitter > 0 else 1):
            rng = assignment_rng(routing.seed, layer, domain_name, attempt)
            drawn_V = assign_balanced(counts_V, num_experts, rng, routing.jitter)
            overlap = max((grouping_overlap(drawn_V, below_V, frequent) for below_V in experts_LV[:layer]), default=0.0)
            if overlap < least_overlap:
                least_overlap = overlap
                experts_LV[layer] = drawn_V
            if overlap <= MAX_OVERLAP:
                break
    return experts_LV


def assignment_rng(seed: int, layer: int, domain_name: str, attempt: int = 0) -> np.random.Generator:
    """Returns the random stream of one (seed, layer, domain name), independent of other layers and domains."""
    key = f"{seed}/{layer}/{attempt}/{domain_name}".encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")))


def most_frequent_tokens(token_counts_V: np.ndarray, limit: int = FREQUENT_TOKENS) -> np.ndarray:
    """Returns int64 [≤ limit]: the ids that occur most often, most frequent first, without ids that never occur."""
    order = np.argsort(-token_counts_V, kind="stable")[:limit]
    return order[token_counts_V[order] > 0]


def grouping_overlap(table_a_V: np.ndarray, table_b_V: np.ndarray, tokens: np.ndarray) -> float:
    """Measures how similarly two layers group tokens, relative to chance.

    Of the n(n−1)/2 pairs of `tokens`, let a pairs share an expert in layer A, b pairs in layer B, and ab pairs in both.
    If the layers were independent, a·b / (n(n−1)/2) pairs would be expected to share one in both. The result is ab over
    this expectation: 1 for independent layers, about the number of experts for equal layers, and 0 if the expectation
    is 0.

    Args:
        table_a_V, table_b_V: integers [V], the experts of the two layers.
        tokens: integers [n], distinct token ids.
    """
    a = table_a_V[tokens].astype(np.int64)
    b = table_b_V[tokens].astype(np.int64)
    all_pairs = a.size * (a.size - 1) // 2
    expected_times_all = _pairs_together(a) * _pairs_together(b)
    if expected_times_all == 0:
        return 0.0
    return _pairs_together(a * (int(b.max()) + 1) + b) * all_pairs / expected_times_all


def _pairs_together(groups: np.ndarray) -> int:
    sizes = np.unique(groups, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _deal_evenly(num_tokens: int, owned_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns uint16 [num_tokens]: experts for further token ids that even out the number of ids per expert."""
    # Filling the k experts that own the fewest ids up to a common level takes k·level − (the ids they own). The highest
    # affordable level is the minimum over k. The remaining ids, fewer than the experts at that level, go to some of
    # them.
    fewest_first = np.sort(owned_E)
    level = ((num_tokens + np.cumsum(fewest_first)) // np.arange(1, owned_E.size + 1)).min()
    share_E = np.maximum(level - owned_E, 0)
    remainder = num_tokens - share_E.sum()
    share_E[rng.permutation(np.flatnonzero(owned_E <= level))[:remainder]] += 1
    return rng.permutation(np.repeat(np.arange(owned_E.size, dtype=np.uint16), share_E))


def _checked_counts(token_counts_V: np.ndarray) -> np.ndarray:
    counts_V = np.asarray(token_counts_V)
    if counts_V.ndim != 1 or counts_V.dtype.kind not in "iu":
        raise RoutingError(
            f"token counts are {counts_V.dtype} of shape {counts_V.shape}; they must be one integer per token id"
        )
    if counts_V.size and counts_V.min() < 0:
        raise RoutingError(f"token id {counts_V.argmin()} has the count {counts_V.min()}; counts must be >= 0")
    return counts_V.astype(np.int64, copy=False)


def _require_a_token_for_each(num_experts: int, vocab_size: int) -> None:
    if not 1 <= num_experts <= vocab_size:
        raise RoutingError(
            f"{num_experts} experts cannot share {vocab_size} token ids: some would never be reached; "
            "lower domains.experts_per_domain or enlarge the vocabulary"
        )
