"""Parts of tensors: what a rank has of one, and how the parts of some ranks become those of others."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Part:
    """The crossing of some ranges along some axes of a tensor.

    Attributes:
        shape: of the whole tensor.
        ranges: axis → (start, stop) along it, in the order in which they stand in the part. Other axes are whole.
    """

    shape: tuple[int, ...]
    ranges: tuple[tuple[int, Ranges], ...] = ()

    @staticmethod
    def equal(shape: Sequence[int], axis: int | None, rank: int, size: int) -> "Part":
        """Part number `rank` of `size` equal ones along an axis; the whole tensor where axis is None."""
        if axis is None or size == 1:
            return Part(tuple(shape))
        return Part(tuple(shape), ((axis, (share(shape[axis], rank, size),)),))

    @property
    def is_whole(self) -> bool:
        return not self.ranges

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of this part."""
        return tuple(len(indices) for indices in self._indices())

    def rows(self, rank: int, size: int) -> "Part":
        """Of this part, rows number `rank` of `size` equal ones along the first axis."""
        mine = self._indices()[0]
        mine = mine[slice(*share(len(mine), rank, size))]
        edges = np.flatnonzero(np.diff(mine, prepend=-2, append=-2) != 1)
        runs = tuple((int(mine[start]), int(mine[stop - 1]) + 1) for start, stop in itertools.pairwise(edges))
        return Part(self.shape, ((0, runs), *((axis, ranges) for axis, ranges in self.ranges if axis)))

    def of(self, whole: np.ndarray) -> np.ndarray:
        """This part of a whole tensor; a copy, unless it is everything."""
        return whole if self.is_whole else np.ascontiguousarray(whole[np.ix_(*self._indices())])

    def put(self, part: np.ndarray, whole: np.ndarray) -> None:
        """Writes this part into the whole tensor."""
        whole[np.ix_(*self._indices())] = part

    def copy(self, mine: np.ndarray, other: "Part", theirs: np.ndarray) -> int:
        """Copies into this part what another part of the same tensor has of it; returns how many numbers that were."""
        common = [
            np.intersect1d(ours, others, assume_unique=True, return_indices=True)[1:]
            for ours, others in zip(self._indices(), other._indices(), strict=True)
        ]
        if self == other:
            mine[...] = theirs
        else:
            mine[np.ix_(*(to for to, _ in common))] = theirs[np.ix_(*(source for _, source in common))]
        return int(np.prod([len(to) for to, _ in common]))

    def describe(self) -> dict[str, Any]:
        """For JSON; `Part.read` makes a part of it."""
        return {"shape": list(self.shape), "ranges": {str(axis): ranges for axis, ranges in self.ranges}}

    @staticmethod
    def read(described: dict[str, Any]) -> "Part":
        """Raises KeyError, TypeError or ValueError for what `describe` did not make."""
        ranges = {int(axis): tuple((int(a), int(b)) for a, b in each) for axis, each in described["ranges"].items()}
        return Part(tuple(map(int, described["shape"])), tuple(sorted(ranges.items())))

    def _indices(self) -> list[np.ndarray]:
        chosen = dict(self.ranges)
        return [
            np.concatenate([np.arange(start, stop) for start, stop in chosen[axis]] or [np.arange(0)])
            if axis in chosen
            else np.arange(size)
            for axis, size in enumerate(self.shape)
        ]


def share(count: int, rank: int, size: int) -> tuple[int, int]:
    """(start, stop) of part `rank` of a count divided by `size`; parts differ by one at most."""
    return count * rank // size, count * (rank + 1) // size


def vocabulary_part(starts: Sequence[int], sizes: Sequence[int], hidden: int, rank: int, size: int) -> Part:
    """A rank's share of each vocabulary's rows, so that the head can multiply by one vocabulary alone."""
    shape = (sum(sizes), hidden)
    if size == 1:
        return Part(shape)
    shares = [share(count, rank, size) for count in sizes]
    return Part(shape, ((0, tuple((at + a, at + b) for at, (a, b) in zip(starts, shares, strict=True))),))
