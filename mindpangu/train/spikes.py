"""Which steps are skipped: those that are not finite, and those that leave the recent range of loss or norm."""

import math
from collections import deque
from collections.abc import Mapping


class SpikeGuard:
    """Keeps the losses and gradient norms of the last accepted steps and judges the next one.

    A step is skipped when its loss or norm exceeds the window's mean by more than `sigma` standard deviations
    (the rule of OLMo's SkipStepOptimizer); nothing is judged before the window is half full.
    """

    def __init__(self, sigma: float, window: int):
        self.sigma, self.window = sigma, window
        self.history = {"loss": deque(maxlen=window), "global_norm": deque(maxlen=window)}

    def reason_to_skip(self, values: Mapping[str, float]) -> str | None:
        """Why a step with these values ("loss", "global_norm") must be skipped, or None; then it is remembered."""
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        if self.sigma > 0:
            for name, value in values.items():
                limit = self._limit(name)
                if limit is not None and value > limit:
                    return f"{name} {value:.4g} is above {limit:.4g} (mean + {self.sigma:g} σ of recent steps)"
        for name, value in values.items():
            self.history[name].append(value)
        return None

    def state(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.history.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        for name, values in state.items():
            self.history[name] = deque(values, maxlen=self.window)

    def _limit(self, name: str) -> float | None:
        values = self.history[name]
        if len(values) * 2 < self.window:
            return None
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean + self.sigma * deviation
