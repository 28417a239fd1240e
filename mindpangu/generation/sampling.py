"""Sampling the next token from logits: penalties, greedy, temperature, top-k, top-p. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.errors import GenerationError

_NUCLEUS = 256  # top-p first sorts this many tokens, and all of them only if these do not suffice


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are sampled. The settings apply in this order.

    Attributes:
        repetition_penalty: divides positive logits of tokens in the prompt or the text so far, and multiplies negative
            ones; 1 does nothing (CTRL, Keskar et al. 2019, section 4.1).
        frequency_penalty: subtracted from a token's logit once for every time that it was generated. PanGu-α's
            published generation uses 1.5, with a presence penalty of 0.3 and top_k 3.
        presence_penalty: subtracted once from the logit of each generated token.
        temperature: divides the logits; 0 is greedy.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the most likely tokens until their probabilities sum to p; 1 keeps all (Holtzman et al. 2020).
        seed: seed of the random choice; the same seed gives the same text.

    Raises:
        GenerationError: a value is invalid.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("temperature", self.temperature == 0 or 1e-3 <= self.temperature <= 1e3, "0, or 0.001 to 1000"),
            ("seed", self.seed >= 0, ">= 0"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "> 0 and <= 1"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "0.001 to 1000; 1 does nothing"),
            ("frequency_penalty", abs(self.frequency_penalty) <= 1e3, "-1000 to 1000; 0 does nothing"),
            ("presence_penalty", abs(self.presence_penalty) <= 1e3, "-1000 to 1000; 0 does nothing"),
        ):
            if not holds:
                raise GenerationError(f"{name} is {getattr(self, name)}; allowed: {allowed}")


class Sampler:
    """Samples the tokens of one text. Results do not depend on the other texts in the batch.

    Args:
        settings: how tokens are sampled.
        prompt: token ids of the prompt, for the repetition penalty.
    """

    def __init__(self, settings: SamplingSettings, prompt: Sequence[int]):
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._seen = set(prompt)
        self._counts: dict[int, int] = {}

    def pick(self, logits_V: np.ndarray) -> int:
        """Samples the next token. Raises GenerationError if the logits are not finite.

        Args:
            logits_V: float32 [V]; not modified.
        """
        token = pick_token(self._penalized(logits_V), self._settings, self._rng)
        self._seen.add(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalized(self, logits_V: np.ndarray) -> np.ndarray:
        settings = self._settings
        penalizes_repetition = settings.repetition_penalty != 1
        penalizes_counts = settings.frequency_penalty or settings.presence_penalty
        if not (penalizes_repetition or penalizes_counts):
            return logits_V
        scores_V = logits_V.astype(np.float64)
        if penalizes_repetition and self._seen:
            seen = np.fromiter(self._seen, np.int64)
            found = scores_V[seen]
            penalty = settings.repetition_penalty
            scores_V[seen] = np.where(found > 0, found / penalty, found * penalty)
        if penalizes_counts and self._counts:
            tokens = np.fromiter(self._counts, np.int64)
            times = np.fromiter(self._counts.values(), np.float64)
            scores_V[tokens] -= settings.frequency_penalty * times + settings.presence_penalty
        return scores_V


def pick_token(logits_V: np.ndarray, settings: SamplingSettings, rng: np.random.Generator) -> int:
    """Samples one token id from logits. Ties go to the lower id.

    Draws one random number per token, none when greedy.

    Raises:
        GenerationError: the largest logit is not finite.
    """
    best = int(logits_V.argmax())
    if not np.isfinite(logits_V[best]):
        raise GenerationError(
            f"the model's scores are not finite (token {best}: {logits_V[best]}); its weights are broken"
        )
    if settings.temperature == 0:
        return best
    tokens = largest(logits_V, settings.top_k) if settings.top_k else np.arange(len(logits_V))
    scores = logits_V[tokens].astype(np.float64) / settings.temperature
    weights = np.exp(scores - scores.max())
    if settings.top_p < 1:
        kept = _nucleus(weights, settings.top_p)
        tokens = tokens[kept]
        weights = weights[kept]
    reached = np.cumsum(weights)
    drawn = int(np.searchsorted(reached, rng.random() * reached[-1], side="right"))
    return int(tokens[min(drawn, len(tokens) - 1)])


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the largest scores, largest first. Ties go to the lower index."""
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = np.flatnonzero(scores > least)
        chosen = np.concatenate([above, np.flatnonzero(scores == least)[: count - len(above)]])
        chosen.sort()
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _nucleus(weights: np.ndarray, p: float) -> np.ndarray:
    """Returns the indices of the fewest largest weights that reach p of the sum; at least one."""
    total = weights.sum()
    for count in (_NUCLEUS, len(weights)):
        order = largest(weights, count)
        reached = np.cumsum(weights[order])
        if reached[-1] >= p * total or count >= len(weights):
            break
    return order[: 1 + int((reached[:-1] < p * total).sum())]
