"""Which layers a model can spare: the loss when windows of consecutive layers are skipped.

After "Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791): the layers near the
beginning and the end matter most, and windows of one to three layers show it. How windows become an order of the layers
is not published; here a layer's importance is the mean, over the windows that have it and no layer that stays anyway,
of the rise of the loss for each layer of the window.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

LONGEST_WINDOW = 3


@dataclass(frozen=True)
class Window:
    """Layers `first` … `first + size − 1`, and the mean loss without them."""

    first: int
    size: int
    loss: float

    @property
    def layers(self) -> range:
        return range(self.first, self.first + self.size)


def measure_windows(
    loss: MaskedLoss,
    longest: int = LONGEST_WINDOW,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> list[Window]:
    """The loss without each window of 1 to `longest` consecutive layers, and fewer than all."""
    num_layers, units = loss.config.model.num_layers, Units.full(loss.config.model)
    places = [
        (first, size) for size in range(1, min(longest, num_layers - 1) + 1) for first in range(num_layers - size + 1)
    ]

    def without(first: int, size: int) -> float:
        layers_L = np.ones(num_layers, np.float32)
        layers_L[first : first + size] = 0
        return loss.loss(units, layers_L)

    return [Window(first, size, without(first, size)) for first, size in progress(places)]


def choose_layers(
    windows: Sequence[Window], whole: float, num_layers: int, wanted: int, keep_first: int, keep_last: int
) -> tuple[int, ...]:
    """The layers that stay, ascending: all but the least important ones between those that stay anyway.

    Args:
        whole: loss of the whole model. num_layers, wanted: before and after.
        keep_first, keep_last: layers that stay anyway; see `require_depth`.
    """
    if wanted == num_layers:
        return tuple(range(num_layers))
    importance = layer_importance(windows, whole, range(keep_first, num_layers - keep_last))
    dropped = sorted(importance, key=lambda layer: (importance[layer], layer))[: num_layers - wanted]
    return tuple(layer for layer in range(num_layers) if layer not in dropped)


def require_depth(num_layers: int, wanted: int, keep_first: int, keep_last: int, query_layer: bool) -> None:
    """Raises ConfigError where more layers stay anyway than are wanted, or where the query layer might go. Of a child
    as deep as its parent all layers stay."""
    if wanted == num_layers:
        return
    if min(keep_first, keep_last) < 0 or keep_first + keep_last > wanted:
        raise ConfigError(
            f"--keep-first {keep_first} and --keep-last {keep_last} keep {keep_first + keep_last} layers, and "
            f"model.num_layers of the child is {wanted}; keep fewer (0 or more each), or give the child more layers"
        )
    if query_layer and keep_last == 0:
        raise ConfigError("--keep-last is 0, but the last layer is the query layer, which has to stay; give 1 or more")


def layer_importance(windows: Sequence[Window], whole: float, layers: range) -> dict[int, float]:
    """Layer → mean of (loss without the window − loss of the whole model) / size, over the windows that have it and
    consist of these layers."""
    inside = [window for window in windows if window.first >= layers.start and window.layers.stop <= layers.stop]
    return {
        layer: float(np.mean([(window.loss - whole) / window.size for window in inside if layer in window.layers]))
        for layer in layers
    }
