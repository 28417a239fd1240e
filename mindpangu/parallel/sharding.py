"""Parts of tensors: what a rank has of one, and how parts become the whole again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Some rows along one axis of a tensor.

    Attributes:
        shape: of the whole tensor.
        axis: along which it is cut; None for the whole tensor.
        ranges: (start, stop) along the axis, in the order in which they stand in the part.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def equal(shape: tuple[int, ...], axis: int | None, rank: int, size: int) -> "Part":
        """Part number `rank` of `size` equal ones; the whole tensor where axis is None."""
        if axis is None or size == 1:
            return Part(tuple(shape))
        return Part(tuple(shape), axis, (share(shape[axis], rank, size),))

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of this part."""
        if self.axis is None:
            return self.shape
        size = sum(stop - start for start, stop in self.ranges)
        return (*self.shape[: self.axis], size, *self.shape[self.axis + 1 :])

    def of(self, whole: np.ndarray) -> np.ndarray:
        """This part, a copy unless it is everything."""
        if self.axis is None:
            return whole
        pieces = [whole[self._index(start, stop)] for start, stop in self.ranges]
        return np.ascontiguousarray(np.concatenate(pieces, self.axis))

    def put(self, part: np.ndarray, whole: np.ndarray) -> None:
        """Writes this part into the whole tensor."""
        if self.axis is None:
            whole[...] = part
            return
        taken = 0
        for start, stop in self.ranges:
            whole[self._index(start, stop)] = part[self._index(taken, taken + stop - start)]
            taken += stop - start

    def _index(self, start: int, stop: int) -> tuple[slice, ...]:
        return (slice(None),) * self.axis + (slice(start, stop),)


def share(count: int, rank: int, size: int) -> tuple[int, int]:
    """(start, stop) of part `rank` of a count divided by `size`; parts differ by one at most."""
    return count * rank // size, count * (rank + 1) // size


def vocabulary_part(starts: Sequence[int], sizes: Sequence[int], hidden: int, rank: int, size: int) -> Part:
    """Of an embedding table: of every slot's rows a share, so that the head can multiply by one slot alone."""
    shape = (sum(sizes), hidden)
    if size == 1:
        return Part(shape)
    shares = [share(count, rank, size) for count in sizes]
    return Part(shape, 0, tuple((at + start, at + stop) for at, (start, stop) in zip(starts, shares, strict=True)))
