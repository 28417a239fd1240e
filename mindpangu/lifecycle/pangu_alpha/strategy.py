"""MindSpore's strategy file: how tensors were divided among the ranks of a training run, and the resulting slices.

For each tensor the file has

    device matrix           the ranks as a grid, e.g. [64, 8]: rank = 8 · row + column
    tensor map              for each axis of the tensor: the axis of the grid that divides it, from the right; -1: none
    optimizer shards        step and size: ranks with the same slice divide its first axis further

PanGu-α 2.6B and 13B were saved by 512 ranks with optimizer shards: each rank has one slice of nearly every matrix.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.display import describe_error, short_repr, short_text
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.weights import is_training_state
from mindpangu.untrusted import read_bytes

_FILE_LIMIT = 1 << 26  # bytes
_MAX_AXES = 8

Index = tuple[tuple[int, ...], int]
"""A slice of a tensor: its index along each axis, and its index among the optimizer shards."""


@dataclass(frozen=True)
class Layout:
    """The division of one tensor.

    Attributes:
        devices: the grid of ranks.
        axes: for each axis of the tensor, the axis of the grid that divides it, or -1.
        shard_step: number of ranks from one optimizer shard to the next.
        num_shards: number of optimizer shards, 1 for none.
    """

    devices: tuple[int, ...]
    axes: tuple[int, ...]
    shard_step: int = 1
    num_shards: int = 1

    @property
    def num_ranks(self) -> int:
        """Number of ranks in the grid."""
        return math.prod(self.devices)

    @property
    def splits(self) -> tuple[int, ...]:
        """Number of slices along each axis, without optimizer shards."""
        return tuple(1 if axis < 0 else self.devices[axis] for axis in self.axes)

    def index(self, rank: int) -> Index:
        """Returns the index of the slice that a rank holds."""
        coordinates = np.unravel_index(rank, self.devices)
        along = tuple(0 if axis < 0 else int(coordinates[axis]) for axis in self.axes)
        return along, rank // self.shard_step % self.num_shards

    def whole_shape(self, slice_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the tensor whose slices have this shape."""
        if len(slice_shape) != len(self.axes):
            raise ValueError(f"its slices have {len(slice_shape)} axes, the strategy {len(self.axes)}")
        shards = (self.num_shards, *(1 for _ in slice_shape[1:]))[: len(slice_shape)]
        return tuple(map(math.prod, zip(slice_shape, self.splits, shards, strict=True)))

    def slices(self, slice_shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Yields (rank, position in the complete tensor) for slices that together make up the tensor."""
        for (along, shard), rank in owners(self).items():
            first, *rest = along or (0,)
            starts = [first * self.num_shards + shard, *rest]
            yield rank, tuple(slice(i * n, (i + 1) * n) for i, n in zip(starts, slice_shape, strict=False))


@functools.cache  # a strategy has hundreds of tensors but only a handful of layouts
def owners(layout: Layout) -> dict[Index, int]:
    """Maps each slice to the first rank that holds it.

    Raises:
        ValueError: no rank holds some of the slices.
    """
    num_slices = math.prod(layout.splits) * layout.num_shards
    if num_slices > layout.num_ranks:
        raise ValueError(
            f"its {layout.num_ranks} ranks lack at least {num_slices - layout.num_ranks:,} of its {num_slices:,} slices"
        )
    first: dict[Index, int] = {}
    for rank in range(layout.num_ranks):
        first.setdefault(layout.index(rank), rank)
    every = itertools.product(itertools.product(*map(range, layout.splits)), range(layout.num_shards))
    missing = sum(index not in first for index in every)
    if missing:
        raise ValueError(f"its ranks lack {missing} slices")
    return first


def read_strategy(path: Path) -> dict[str, Layout]:
    """Reads the layout of each weight from a strategy file; skips Adam's moments.

    Raises:
        CheckpointError: the file cannot be read, or has unsupported layouts.
    """
    from google.protobuf.message import DecodeError
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap()
    try:
        strategy.ParseFromString(read_bytes(path, _FILE_LIMIT, follow_link=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"strategy file {path} cannot be read: {describe_error(error)}") from None
    except DecodeError:
        raise CheckpointError(f"{path} is not a strategy file of MindSpore, or is cut off") from None
    layouts = {}
    for item in strategy.parallel_layout_item:
        if is_training_state(item.param_name):
            continue
        try:
            layouts[item.param_name] = _layout(item.parallel_layouts)
        except ValueError as error:
            name = short_text(item.param_name)
            raise CheckpointError(f"strategy file {path}: the layout of {name}: {error}") from None
    if not layouts:
        raise CheckpointError(f"{path} is not a strategy file of MindSpore: it names no weights")
    ranks = {layout.num_ranks for layout in layouts.values()}
    if len(ranks) > 1:
        found = ", ".join(map(short_repr, sorted(ranks)[:4]))
        raise CheckpointError(
            f"strategy file {path} has layouts of different numbers of ranks ({found}); expected one number for all"
        )
    return layouts


def _layout(stored: Any) -> Layout:
    """Converts a `ParallelLayouts` message."""
    if len(stored.dev_matrix) != 1 or len(stored.tensor_map) != 1:
        raise ValueError("it divides an axis by several axes of the ranks, which is not supported")
    if stored.field or any(each.dim for each in (*stored.param_split_shape, *stored.indices_offset)):
        raise ValueError("its slices differ in size, which is not supported")
    devices = tuple(stored.dev_matrix[0].dim)
    tensor_map = tuple(stored.tensor_map[0].dim)
    if not devices or min(devices) < 1:
        raise ValueError("it has no ranks")
    if max(len(devices), len(tensor_map)) > _MAX_AXES:
        raise ValueError(f"it has {max(len(devices), len(tensor_map)):,} axes; allowed: at most {_MAX_AXES}")
    if any(axis not in range(-1, len(devices)) for axis in tensor_map):
        raise ValueError(f"its map {list(tensor_map)} names axes that the ranks {list(devices)} do not have")
    layout = Layout(devices, tuple(-1 if axis < 0 else len(devices) - 1 - axis for axis in tensor_map))
    step = stored.opt_weight_shard_step
    num_shards = stored.opt_weight_shard_size
    if not step or not num_shards:
        return layout
    if num_shards < 0:  # as many as there are equal slices
        num_shards = layout.num_ranks // math.prod(layout.splits)
    return replace(layout, shard_step=step, num_shards=num_shards)
