"""The loss scale of mixed precision: keeps small fp16 gradients above zero, and backs off when large ones overflow."""

from collections.abc import Mapping

from mindpangu.config import Config

LOWEST, HIGHEST = 1.0, 2.0**32


class LossScale:
    """The factor of the loss in the next step's gradients; what is reported or applied is divided by it again.

    Dynamic, as PyTorch's GradScaler and MindSpore's DynamicLossScaleManager have it: an overflow (loss or norm not
    finite) halves it, `window` steps in a row without one double it, and it stays between 1 and 2³². Steps that were
    skipped as spikes count as steps without overflow, for their gradients were finite.

    A step that overflows while the scale can still be halved is how the scale is found, not a sign of a broken run; it
    does not count for training.max_skipped_steps. Overflows at a scale of 1 do: nothing is left to lower.

    Attributes:
        value: of the next step. Powers of two lose no bits in scaling.
    """

    def __init__(self, start: float, window: int):
        self.value, self.window = float(start), window
        self._steps_without_overflow = 0

    @staticmethod
    def from_config(config: Config) -> "LossScale":
        """The configured one for fp16; 1.0 for ever where gradients have the range of fp32."""
        if config.context.precision == "fp16":
            return LossScale(config.training.loss_scale, config.training.loss_scale_window)
        return FixedLossScale()

    def update(self, overflow: bool) -> bool:
        """Takes notice of a step; returns whether the scale was lowered."""
        before = self.value
        if overflow:
            self.value, self._steps_without_overflow = max(self.value / 2, LOWEST), 0
            return self.value < before
        self._steps_without_overflow += 1
        if self._steps_without_overflow == self.window:
            self.value, self._steps_without_overflow = min(self.value * 2, HIGHEST), 0
        return False

    def state(self) -> dict[str, float]:
        return {"value": self.value, "steps_without_overflow": self._steps_without_overflow}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.value, self._steps_without_overflow = state["value"], state["steps_without_overflow"]


class FixedLossScale(LossScale):
    """1.0, whatever happens: no scaling."""

    def __init__(self):
        super().__init__(1.0, 0)

    def update(self, overflow: bool) -> bool:
        return False
