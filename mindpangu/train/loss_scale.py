"""The loss scale of mixed precision: keeps small fp16 gradients from becoming zero, and large ones from overflowing."""

from collections.abc import Mapping

from mindpangu.config import Config

LOWEST = 1.0
HIGHEST = 2.0**32


class LossScale:
    """Factor on the loss when gradients are computed. Reported losses and norms and applied updates are free of it.

    It is dynamic, as in PyTorch's GradScaler and MindSpore's DynamicLossScaleManager: an overflow (loss or norm not
    finite) halves it, `window` steps in a row without overflow double it, and it stays between 1 and 2³². Steps that
    are skipped as spikes count as steps without overflow because their gradients are finite.

    An overflow that lowers the scale is part of finding it, not a sign of a broken run, so it does not count towards
    training.max_skipped_steps. An overflow at a scale of 1 does.

    Attributes:
        value: scale of the next step. Scaling by powers of two loses no bits.
        window: number of steps without overflow after which the scale doubles.
    """

    def __init__(self, start: float, window: int):
        self.value = float(start)
        self.window = window
        self._steps_without_overflow = 0

    @staticmethod
    def from_config(config: Config) -> "LossScale":
        """Returns the configured loss scale for fp16, and a constant 1.0 for fp32."""
        if config.context.precision == "fp16":
            return LossScale(config.training.loss_scale, config.training.loss_scale_window)
        return FixedLossScale()

    def update(self, overflow: bool) -> bool:
        """Records whether a step overflowed; returns True if the scale was lowered."""
        before = self.value
        if overflow:
            self.value = max(self.value / 2, LOWEST)
            self._steps_without_overflow = 0
            return self.value < before
        self._steps_without_overflow += 1
        if self._steps_without_overflow == self.window:
            self.value = min(self.value * 2, HIGHEST)
            self._steps_without_overflow = 0
        return False

    def state(self) -> dict[str, float]:
        """Returns the state that a checkpoint saves."""
        return {"value": self.value, "steps_without_overflow": self._steps_without_overflow}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restores a saved state."""
        self.value = state["value"]
        self._steps_without_overflow = int(state["steps_without_overflow"])


class FixedLossScale(LossScale):
    """A loss scale of 1.0 that never changes."""

    def __init__(self) -> None:
        super().__init__(1.0, 0)

    def update(self, overflow: bool) -> bool:
        return False
