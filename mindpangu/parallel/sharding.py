"""Slices of tensors: the elements that a rank holds, and the conversion of one layout into another."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from mindpangu.untrusted import Count, Pattern, Range, read_record

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Description:
    """A slice as `TensorSlice.describe` writes it."""

    shape: list[Annotated[int, Range(0, 1 << 40)]]
    ranges: dict[Annotated[str, Pattern("[0-9]{1,2}", "the number of an axis")], list[tuple[Count, Count]]]


@dataclass(frozen=True)
class TensorSlice:
    """A slice of a tensor: the elements whose index lies in given ranges along each axis.

    Attributes:
        shape: shape of the whole tensor.
        ranges: (axis, its (start, stop) ranges in the order of the slice) for each divided axis; other axes are whole.
    """

    shape: tuple[int, ...]
    ranges: tuple[tuple[int, Ranges], ...] = ()

    @staticmethod
    def equal(shape: Sequence[int], axis: int | None, rank: int, size: int) -> "TensorSlice":
        """Returns slice `rank` of `size` equal ones along an axis; the whole tensor if axis is None."""
        if axis is None or size == 1:
            return TensorSlice(tuple(shape))
        return TensorSlice(tuple(shape), ((axis, (share(shape[axis], rank, size),)),))

    @property
    def is_whole(self) -> bool:
        """True if this is the whole tensor."""
        return not self.ranges

    @property
    def size(self) -> int:
        """Number of elements of this slice."""
        return math.prod(self.local_shape)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of this slice."""
        return tuple(sum(stop - start for start, stop in ranges) for ranges in self._ranges_of_axes())

    def rows(self, rank: int, size: int) -> "TensorSlice":
        """Divides this slice into `size` equal slices along the first axis and returns the one with index `rank`."""
        mine = self._indices()[0]
        mine = mine[slice(*share(len(mine), rank, size))]
        edges = np.flatnonzero(np.diff(mine, prepend=-2, append=-2) != 1)
        runs = tuple((int(mine[start]), int(mine[stop - 1]) + 1) for start, stop in itertools.pairwise(edges))
        return TensorSlice(self.shape, ((0, runs), *((axis, ranges) for axis, ranges in self.ranges if axis)))

    def of(self, whole: np.ndarray) -> np.ndarray:
        """Cuts this slice out of a whole tensor. Returns a copy unless it is the whole tensor."""
        return whole if self.is_whole else np.ascontiguousarray(whole[np.ix_(*self._indices())])

    def put(self, values: np.ndarray, whole: np.ndarray) -> None:
        """Writes the values of this slice into the whole tensor."""
        whole[np.ix_(*self._indices())] = values

    def copy(self, mine: np.ndarray, other: "TensorSlice", theirs: np.ndarray) -> int:
        """Copies the elements that another slice of the same tensor shares with this one; returns their number.

        Args:
            mine: the values of this slice, which are written.
            theirs: the values of `other`.
        """
        if self == other:
            mine[...] = theirs
            return self.size
        if not (self.size and other.size):  # without elements, an axis may be of any length
            return 0
        common = [
            np.intersect1d(ours, others, assume_unique=True, return_indices=True)[1:]
            for ours, others in zip(self._indices(), other._indices(), strict=True)
        ]
        targets = np.ix_(*(target for target, _ in common))
        sources = np.ix_(*(source for _, source in common))
        mine[targets] = theirs[sources]
        return int(np.prod([len(to) for to, _ in common]))

    def is_covered_by(self, others: Sequence["TensorSlice"]) -> bool:
        """True if every element of this slice is in at least one of the others."""
        if self in others:
            return True
        covered = np.zeros(self.local_shape, bool)
        for other in others:
            self.copy(covered, other, np.broadcast_to(np.array(True), other.local_shape))
        return bool(covered.all())

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-serialisable description, which `TensorSlice.read` parses."""
        return {"shape": list(self.shape), "ranges": {str(axis): ranges for axis, ranges in self.ranges}}

    @staticmethod
    def read(described: Any, where: str) -> "TensorSlice":
        """Parses a description. Raises ValueError if it is invalid; the message begins with `where`."""
        content = read_record(_Description, described, where)
        for axis, ranges in content.ranges.items():
            if int(axis) >= len(content.shape):
                raise ValueError(f"{where}.ranges has the axis {axis}; allowed: < {len(content.shape)}")
            size = content.shape[int(axis)]
            edges = [edge for start_and_stop in ranges for edge in start_and_stop]
            if edges != sorted(edges) or any(edge > size for edge in edges):
                raise ValueError(f"{where}.ranges.{axis} has ranges that overlap, are not sorted, or exceed {size}")
        divided = {int(axis): tuple(ranges) for axis, ranges in content.ranges.items()}
        return TensorSlice(tuple(content.shape), tuple(sorted(divided.items())))

    def _ranges_of_axes(self) -> list[Ranges]:
        """Returns the (start, stop) ranges of the slice along each axis."""
        divided = dict(self.ranges)
        return [divided.get(axis, ((0, size),)) for axis, size in enumerate(self.shape)]

    def _indices(self) -> list[np.ndarray]:
        """Returns the indices of the slice's elements along each axis."""
        return [
            np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in ranges)])
            for ranges in self._ranges_of_axes()
        ]


def share(count: int, rank: int, size: int) -> tuple[int, int]:
    """Returns (start, stop) of share `rank` when `count` items are divided by `size`. Shares differ by at most one."""
    return count * rank // size, count * (rank + 1) // size


def vocabulary_slice(starts: Sequence[int], sizes: Sequence[int], hidden: int, rank: int, size: int) -> TensorSlice:
    """Returns a rank's share of the rows of every vocabulary, so that the head can multiply by a single vocabulary."""
    shape = (sum(sizes), hidden)
    if size == 1:
        return TensorSlice(shape)
    ranges = []
    for first, count in zip(starts, sizes, strict=True):
        start, stop = share(count, rank, size)
        ranges.append((first + start, first + stop))
    return TensorSlice(shape, ((0, tuple(ranges)),))
