"""Selects the layers that a model can do without, by the loss when windows of consecutive layers are skipped.

Follows "Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791): the layers near the
beginning and the end matter most, as windows of one to three layers show. How the paper ranks layers by these windows
is not published. Here, a layer's importance is the increase of the loss per skipped layer, averaged over the windows
that contain it but none of the layers that are always kept.
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
    """Consecutive layers `first` … `first + size − 1`, and the mean loss without them."""

    first: int
    size: int
    loss: float

    @property
    def layers(self) -> range:
        """Indices of the layers."""
        return range(self.first, self.first + self.size)


def measure_windows(
    loss: MaskedLoss,
    longest: int = LONGEST_WINDOW,
    progress: Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]] = lambda windows: windows,
) -> list[Window]:
    """Measures the loss without each window of 1 to `longest` consecutive layers. At least one layer always remains."""
    num_layers = loss.config.model.num_layers
    units = Units.full(loss.config.model)
    largest_size = min(longest, num_layers - 1)
    windows = [(first, size) for size in range(1, largest_size + 1) for first in range(num_layers - size + 1)]

    def loss_without(first: int, size: int) -> float:
        layers_L = np.ones(num_layers, np.float32)
        layers_L[first : first + size] = 0
        return loss.loss(units, layers_L)

    return [Window(first, size, loss_without(first, size)) for first, size in progress(windows)]


def choose_layers(
    windows: Sequence[Window], full_loss: float, num_layers: int, child_layers: int, keep_first: int, keep_last: int
) -> tuple[int, ...]:
    """Returns the layers to keep, ascending. Removes the least important layers between the first and the last ones.

    Args:
        full_loss: loss of the full model.
        num_layers, child_layers: number of layers before and after.
        keep_first, keep_last: number of layers that are always kept at either end; see `require_depth`.
    """
    if child_layers == num_layers:
        return tuple(range(num_layers))
    importance = layer_importance(windows, full_loss, range(keep_first, num_layers - keep_last))
    removed = sorted(importance, key=lambda layer: (importance[layer], layer))[: num_layers - child_layers]
    return tuple(layer for layer in range(num_layers) if layer not in removed)


def require_depth(num_layers: int, child_layers: int, keep_first: int, keep_last: int, query_layer: bool) -> None:
    """Checks the number of layers that are always kept.

    A child as deep as its parent keeps all layers, so any number is fine.

    Raises:
        ConfigError: more layers are always kept than the child has, or the query layer could be removed.
    """
    if child_layers == num_layers:
        return
    if min(keep_first, keep_last) < 0 or keep_first + keep_last > child_layers:
        raise ConfigError(
            f"--keep-first {keep_first} and --keep-last {keep_last} keep {keep_first + keep_last} layers, but "
            f"model.num_layers of the child is {child_layers}; keep fewer (0 or more each), or give the child more "
            "layers"
        )
    if query_layer and keep_last == 0:
        raise ConfigError("--keep-last is 0, but the last layer is the query layer, which must be kept; give 1 or more")


def layer_importance(windows: Sequence[Window], full_loss: float, layers: range) -> dict[int, float]:
    """Returns layer → importance, for each of `layers`.

    The importance is the mean of (loss without the window − loss of the full model) / size over the windows that
    contain the layer and lie within `layers`.
    """
    inside = [window for window in windows if window.first >= layers.start and window.layers.stop <= layers.stop]
    return {
        layer: float(np.mean([(window.loss - full_loss) / window.size for window in inside if layer in window.layers]))
        for layer in layers
    }
