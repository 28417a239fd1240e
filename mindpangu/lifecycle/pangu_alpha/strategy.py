"""How the ranks of a training shared its tensors: MindSpore's strategy file, and the slices that follow from it.

Per tensor the file has

    device matrix           the ranks as a grid, e.g. [64, 8]: rank = 8 · row + column
    tensor map              for each axis of the tensor: which axis of the grid divides it, from the right; -1 for none
    optimizer shards        step and size: ranks that would have the same slice divide its first axis once more

PanGu-α 2.6B and 13B were saved by 512 ranks with optimizer shards: of nearly every matrix each rank has one part.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.weights import is_training_state

Index = tuple[tuple[int, ...], int]
"""Which slice of a tensor: index along each axis; index among the optimizer shards."""


@dataclass(frozen=True)
class Layout:
    """How one tensor is divided.

    Attributes:
        devices: the grid of ranks. axes: for each axis of the tensor the axis of the grid, or -1.
        shard_step: ranks from one optimizer shard to the next. num_shards: how many there are, 1 for none.
    """

    devices: tuple[int, ...]
    axes: tuple[int, ...]
    shard_step: int = 1
    num_shards: int = 1

    @property
    def num_ranks(self) -> int:
        return math.prod(self.devices)

    @property
    def splits(self) -> tuple[int, ...]:
        """In how many slices each axis is divided, optimizer shards left aside."""
        return tuple(1 if axis < 0 else self.devices[axis] for axis in self.axes)

    def index(self, rank: int) -> Index:
        """The slice that a rank has."""
        at = np.unravel_index(rank, self.devices)
        along = tuple(0 if axis < 0 else int(at[axis]) for axis in self.axes)
        return along, rank // self.shard_step % self.num_shards

    def whole_shape(self, slice_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a tensor whose slices have this shape."""
        if len(slice_shape) != len(self.axes):
            raise ValueError(f"its slices have {len(slice_shape)} axes, the strategy {len(self.axes)}")
        shards = (self.num_shards, *(1 for _ in slice_shape[1:]))[: len(slice_shape)]
        return tuple(map(math.prod, zip(slice_shape, self.splits, shards, strict=True)))

    def slices(self, slice_shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Rank and place in the whole tensor, of slices that make up all of it."""
        for (along, shard), rank in owners(self).items():
            first, *rest = along or (0,)
            starts = [first * self.num_shards + shard, *rest]
            yield rank, tuple(slice(i * n, (i + 1) * n) for i, n in zip(starts, slice_shape, strict=False))


@functools.cache  # a strategy has hundreds of tensors, and a handful of layouts
def owners(layout: Layout) -> dict[Index, int]:
    """Slice → the first rank that has it.

    Raises:
        ValueError: the ranks do not have every slice.
    """
    first: dict[Index, int] = {}
    for rank in range(layout.num_ranks):
        first.setdefault(layout.index(rank), rank)
    every = itertools.product(itertools.product(*map(range, layout.splits)), range(layout.num_shards))
    missing = sum(index not in first for index in every)
    if missing:
        raise ValueError(f"its ranks lack {missing} slices")
    return first


def read_strategy(path: Path) -> dict[str, Layout]:
    """Layout of each weight that a strategy file names; Adam's moments are left out.

    Raises:
        CheckpointError: the file cannot be read, or has layouts that are not understood; none is guessed.
    """
    from google.protobuf.message import DecodeError
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap()
    try:
        strategy.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"strategy file {path} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise CheckpointError(f"{path} is not a strategy file of MindSpore, or not all of it") from None
    layouts = {}
    for item in strategy.parallel_layout_item:
        if is_training_state(item.param_name):
            continue
        try:
            layouts[item.param_name] = _layout(item.parallel_layouts)
        except ValueError as error:
            raise CheckpointError(f"strategy file {path}: the layout of {item.param_name}: {error}") from None
    if not layouts:
        raise CheckpointError(f"{path} is not a strategy file of MindSpore: it names no weights")
    ranks = {layout.num_ranks for layout in layouts.values()}
    if len(ranks) > 1:
        raise CheckpointError(f"strategy file {path} has layouts of {sorted(ranks)} ranks; expected one number of them")
    return layouts


def _layout(found) -> Layout:
    if len(found.dev_matrix) != 1 or len(found.tensor_map) != 1:
        raise ValueError("axes that several axes of the ranks divide are not supported")
    if found.field or any(each.dim for each in (*found.param_split_shape, *found.indices_offset)):
        raise ValueError("slices of different sizes are not supported")
    devices, tensor_map = tuple(found.dev_matrix[0].dim), tuple(found.tensor_map[0].dim)
    if not devices or 0 in devices:
        raise ValueError("it is of no ranks")
    if any(axis not in range(-1, len(devices)) for axis in tensor_map):
        raise ValueError(f"its map {list(tensor_map)} names axes that the ranks {list(devices)} do not have")
    plain = Layout(devices, tuple(-1 if axis < 0 else len(devices) - 1 - axis for axis in tensor_map))
    step, size = found.opt_weight_shard_step, found.opt_weight_shard_size
    if not step or not size:
        return plain
    return replace(plain, shard_step=step, num_shards=plain.num_ranks // math.prod(plain.splits) if size < 0 else size)
