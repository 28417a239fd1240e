"""Which expert of its domain's group each token id belongs to, for one (layer, domain) at a time.

Two assignments, `random` (PanGu-Σ) and `balanced` (ours), the random streams they draw from, and the measure of how
much two layers group the same tokens. Storage and files are in `table.py`, loads on real text in `statistics.py`.
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
    """PanGu-Σ's Algorithm 1: shuffle the experts, deal them to the tokens, reshuffle when the deck is empty.

    Every expert gets ⌈V/E⌉ or ⌊V/E⌋ token ids. Frequencies play no part, so the load is as uneven as the text.

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
    """Gives every expert an equal share of the text: greedy, most frequent tokens first, to the least loaded expert.

    This is longest-processing-time scheduling (Graham 1969). `jitter` disturbs only the order in which tokens are
    placed; the load that decides where a token goes is the true one. Noise on the loads themselves would group tokens
    as differently from layer to layer, but at 0.5 leaves max/mean at 1.2–1.6 instead of 1.00. Tokens that the text
    does not hold are dealt last, so that every expert owns equally many token ids as far as possible.

    Args:
        token_counts_V: int64 [V], how often each token id occurs in the domain's training text.
        num_experts: E, experts in the group.
        rng: the layer's own stream.
        jitter: standard deviation of the log-normal noise on the frequencies that order the tokens; 0 orders them
            exactly, and all layers then group the frequent tokens alike (10 × rng). Above 1 the balance suffers,
            because frequent tokens come too late for the rest to even them out.

    Returns:
        uint16 [V]: index of the expert inside the group. At least min(E, token ids seen) experts are reached.

    Raises:
        RoutingError: more experts than token ids, or counts that are not integers ≥ 0 in one dimension.
    """
    counts_V = _checked_counts(token_counts_V)
    _require_a_token_for_each(num_experts, counts_V.size)

    seen = rng.permutation(np.flatnonzero(counts_V))
    noise = np.exp(jitter * rng.standard_normal(seen.size))
    order = seen[np.argsort(-counts_V[seen] * noise, kind="stable")]

    # The heap settles ties by label; random labels keep the fullest expert of every layer off the same rank.
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
    """All layers of one domain; each (seed, layer, domain name) draws from a stream of its own.

    Independent groupings coincide more than 1.5 × as often as expected by mere chance: hardly ever with 16 experts,
    often with 64, where few common pairs of 200 tokens are expected at all. A balanced layer that coincides too much
    with an earlier one is therefore drawn again; if no draw will do, the best one is kept and the statistics show it.

    Returns:
        uint16 [L, V]: index of the expert inside the domain's group. A layer does not depend on the layers above it.

    Raises:
        RoutingError: as `assign_random` and `assign_balanced`.
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
                least_overlap, experts_LV[layer] = overlap, drawn_V
            if overlap <= MAX_OVERLAP:
                break
    return experts_LV


def assignment_rng(seed: int, layer: int, domain_name: str, attempt: int = 0) -> np.random.Generator:
    """The random stream of one (seed, layer, domain name), whatever other layers and domains there are."""
    key = f"{seed}/{layer}/{attempt}/{domain_name}".encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")))


def most_frequent_tokens(token_counts_V: np.ndarray, limit: int = FREQUENT_TOKENS) -> np.ndarray:
    """int64 [≤ limit]: the ids that occur most often, most frequent first; ids that never occur are left out."""
    order = np.argsort(-token_counts_V, kind="stable")[:limit]
    return order[token_counts_V[order] > 0]


def grouping_overlap(table_a_V: np.ndarray, table_b_V: np.ndarray, tokens: np.ndarray) -> float:
    """How much two layers put the same tokens together, relative to rng.

    Of the n(n−1)/2 pairs of `tokens`, let a be those that share an expert in layer A, b in layer B, and ab in both.
    Were the layers independent, a·b / (n(n−1)/2) pairs would share one in both. The result is ab over that number:
    1 is rng, the number of experts is about what two equal layers give; 0 if no common pair can be expected.

    Args:
        table_a_V, table_b_V: integers [V], the two layers' experts.
        tokens: integers [n], distinct token ids.
    """
    a, b = table_a_V[tokens].astype(np.int64), table_b_V[tokens].astype(np.int64)
    all_pairs = a.size * (a.size - 1) // 2
    expected_times_all = _pairs_together(a) * _pairs_together(b)
    if expected_times_all == 0:
        return 0.0
    return _pairs_together(a * (int(b.max()) + 1) + b) * all_pairs / expected_times_all


def _pairs_together(groups: np.ndarray) -> int:
    sizes = np.unique(groups, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _deal_evenly(num_tokens: int, owned_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint16 [num_tokens]: experts for further token ids, such that those who own fewest get most."""
    # Raising the k poorest experts to a common level L costs k·L − (what they own); the affordable level is the lowest
    # over k. Fewer ids than experts at that level remain, and go to some of these.
    poorest_first = np.sort(owned_E)
    level = ((num_tokens + np.cumsum(poorest_first)) // np.arange(1, owned_E.size + 1)).min()
    share_E = np.maximum(level - owned_E, 0)
    remainder = num_tokens - share_E.sum()
    share_E[rng.permutation(np.flatnonzero(owned_E <= level))[:remainder]] += 1
    return rng.permutation(np.repeat(np.arange(owned_E.size, dtype=np.uint16), share_E))


def _checked_counts(token_counts_V: np.ndarray) -> np.ndarray:
    counts_V = np.asarray(token_counts_V)
    if counts_V.ndim != 1 or counts_V.dtype.kind not in "iu":
        raise RoutingError(
            f"token counts are {counts_V.dtype} of shape {counts_V.shape}; they must be one integer for each token id"
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
