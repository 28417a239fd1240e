"""From scores to the next token: greedy, temperature, top-k, top-p. NumPy only."""

from dataclasses import dataclass

import numpy as np

from mindpangu.errors import GenerationError


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are picked.

    Attributes:
        temperature: divides the scores; 0 is greedy.
        top_k: only the k most likely tokens; 0 keeps all.
        top_p: only the most likely tokens whose probabilities reach p together; 1 keeps all (Holtzman et al. 2020).
        seed: of the random choice; the same seed gives the same text.

    Raises:
        GenerationError: a value that means nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("temperature", self.temperature == 0 or 1e-3 <= self.temperature <= 1e3, "0, or 0.001 to 1000"),
            ("seed", self.seed >= 0, ">= 0"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "> 0 and <= 1"),
        ):
            if not holds:
                raise GenerationError(f"{name} is {getattr(self, name)}; allowed: {allowed}")


def pick_token(logits_V: np.ndarray, settings: SamplingSettings, generator: np.random.Generator) -> int:
    """One token id. Equal scores are won by the lower id."""
    if settings.temperature == 0:
        return int(logits_V.argmax())
    order = np.argsort(-logits_V, kind="stable")
    scores = logits_V[order].astype(np.float64) / settings.temperature
    probabilities = np.exp(scores - scores[0])
    probabilities /= probabilities.sum()
    if settings.top_k:
        probabilities[settings.top_k :] = 0
    if settings.top_p < 1:
        # keep a token while those before it have not reached p; the most likely one always stays
        reached = np.cumsum(probabilities) / probabilities.sum()
        probabilities[1:][reached[:-1] >= settings.top_p] = 0
    return int(order[generator.choice(len(order), p=probabilities / probabilities.sum())])
