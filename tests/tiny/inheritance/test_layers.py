"""Which layers stay: windows, their order, and what stays anyway."""

import numpy as np
import pytest

from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units
from mindpangu.tiny.inheritance.layers import (
    Window,
    choose_layers,
    layer_importance,
    measure_windows,
    require_depth,
)


def windows_of(rises, whole=2.0, longest=3):
    """As if the loss rose by the sum of the layers' rises."""
    return [
        Window(first, size, whole + sum(rises[first : first + size]))
        for size in range(1, longest + 1)
        for first in range(len(rises) - size + 1)
    ]


def test_windows_are_the_loss_without_these_layers(compiled):
    made, loss = compiled("pangu_pi")
    windows = measure_windows(loss)
    assert [(window.first, window.size) for window in windows] == [
        (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (0, 3), (1, 3)
    ]  # fmt: skip
    without = loss.loss(Units.full(made.model), np.array([1, 0, 0, 1], np.float32))
    assert next(window.loss for window in windows if (window.first, window.size) == (1, 2)) == without
    assert len({window.loss for window in windows}) == 9


def test_the_importance_of_a_layer_is_the_mean_rise_a_layer_over_the_windows_that_have_it():
    importance = layer_importance(windows_of([9.0, 3.0, 1.0, 2.0, 9.0]), 2.0, range(1, 4))
    # windows inside: 1, 2, 3, 12, 23, 123
    assert importance == pytest.approx(
        {1: np.mean([3, 4 / 2, 6 / 3]), 2: np.mean([1, 4 / 2, 3 / 2, 6 / 3]), 3: np.mean([2, 3 / 2, 6 / 3])}
    )


def test_the_least_important_go_and_the_ends_stay():
    rises = [0.0, 0.0, 3.0, 0.5, 0.4, 2.0, 0.0, 0.0]
    assert choose_layers(windows_of(rises), 2.0, 8, 6, 2, 2) == (0, 1, 2, 5, 6, 7)
    assert choose_layers(windows_of(rises), 2.0, 8, 4, 2, 2) == (0, 1, 6, 7)
    assert choose_layers(windows_of(rises), 2.0, 8, 8, 2, 2) == tuple(range(8))
    assert choose_layers(windows_of(rises, longest=1), 2.0, 8, 5, 0, 0) == (2, 3, 4, 5, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 3, 2, 2, False), "--keep-first 2 and --keep-last 2 keep 4 layers, and model.num_layers of the child is 3"),
        ((6, 5, -1, 2, False), "--keep-first -1"),
        ((6, 5, 2, 0, True), "--keep-last is 0, but the last layer is the query layer"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        require_depth(*arguments)


def test_a_child_as_deep_as_its_parent_keeps_all_layers_whatever_stays_anyway():
    require_depth(3, 3, 2, 2, True)
