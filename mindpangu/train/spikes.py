"""Decides which steps to skip: those whose loss or gradient norm is not finite or is far above its recent range."""

import math
from collections import deque
from collections.abc import Mapping


class SpikeGuard:
    """Compares a step with the losses and gradient norms of the last accepted steps.

    A step is skipped if its loss or norm exceeds the window's mean by more than `sigma` standard deviations (the rule
    of OLMo's SkipStepOptimizer). The rule applies once the window is half full; a `sigma` of 0 turns it off.
    """

    def __init__(self, sigma: float, window: int):
        self.sigma = sigma
        self.window = window
        self.history: dict[str, deque[float]] = {"loss": deque(maxlen=window), "global_norm": deque(maxlen=window)}

    def reason_to_skip(self, values: Mapping[str, float]) -> str | None:
        """Returns why to skip a step with this "loss" and "global_norm", or None, and then records the values."""
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
        """Returns the state that a checkpoint saves."""
        return {name: list(values) for name, values in self.history.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Restores a saved state."""
        for name, values in state.items():
            self.history[name] = deque(values, maxlen=self.window)

    def _limit(self, name: str) -> float | None:
        values = self.history[name]
        if len(values) * 2 < self.window:
            return None
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean + self.sigma * deviation
