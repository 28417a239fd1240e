"""The selection of layers: windows, importance, and layers that are always kept."""

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


def windows_with(increases, full_loss=2.0, longest=3):
    """Returns windows whose loss increases by the sum of their layers' increases."""
    return [
        Window(first, size, full_loss + sum(increases[first : first + size]))
        for size in range(1, longest + 1)
        for first in range(len(increases) - size + 1)
    ]


def test_a_window_has_the_loss_without_its_layers(compiled):
    parent, loss = compiled("pangu_pi")

    windows = measure_windows(loss)

    size_1 = [(0, 1), (1, 1), (2, 1), (3, 1)]
    size_2 = [(0, 2), (1, 2), (2, 2)]
    size_3 = [(0, 3), (1, 3)]
    assert [(window.first, window.size) for window in windows] == [*size_1, *size_2, *size_3]
    without = loss.loss(Units.full(parent.model), np.array([1, 0, 0, 1], np.float32))
    assert next(window.loss for window in windows if (window.first, window.size) == (1, 2)) == without
    assert len({window.loss for window in windows}) == 9


def test_the_importance_is_the_mean_increase_per_layer_over_the_windows_that_contain_the_layer():
    importance = layer_importance(windows_with([9.0, 3.0, 1.0, 2.0, 9.0]), 2.0, range(1, 4))

    # windows inside: 1, 2, 3, 12, 23, 123
    assert importance == pytest.approx(
        {1: np.mean([3, 4 / 2, 6 / 3]), 2: np.mean([1, 4 / 2, 3 / 2, 6 / 3]), 3: np.mean([2, 3 / 2, 6 / 3])}
    )


def test_the_least_important_layers_are_removed_and_the_ends_are_kept():
    increases = [0.0, 0.0, 3.0, 0.5, 0.4, 2.0, 0.0, 0.0]

    assert choose_layers(windows_with(increases), 2.0, 8, 6, 2, 2) == (0, 1, 2, 5, 6, 7)
    assert choose_layers(windows_with(increases), 2.0, 8, 4, 2, 2) == (0, 1, 6, 7)
    assert choose_layers(windows_with(increases), 2.0, 8, 8, 2, 2) == tuple(range(8))
    assert choose_layers(windows_with(increases, longest=1), 2.0, 8, 5, 0, 0) == (2, 3, 4, 5, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 3, 2, 2, False), "--keep-first 2 and --keep-last 2 keep 4 layers, but model.num_layers of the child is 3"),
        ((6, 5, -1, 2, False), "--keep-first -1"),
        ((6, 5, 2, 0, True), "--keep-last is 0, but the last layer is the query layer"),
    ],
)
def test_impossible_depths_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        require_depth(*arguments)


def test_a_child_as_deep_as_its_parent_may_keep_any_number_of_layers_at_the_ends():
    require_depth(3, 3, 2, 2, True)
