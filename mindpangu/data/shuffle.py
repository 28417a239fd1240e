"""The order of the samples: a keyed permutation that is computed, not stored.

`permuted` is a Feistel network over Z_a × Z_b with a·b >= size (Black & Rogaway 2002, "Ciphers with Arbitrary Finite
Domains"): any sample of any epoch is known at once, in no memory, which is what makes a loader's state a few integers.
"""

import hashlib
import json
import math

import numpy as np
import numpy.typing as npt

_ROUNDS = 4  # each changes both halves
_CHUNK = 1024  # indices computed at once; amortises the cost of small NumPy calls
_MASK = (1 << 64) - 1


def permuted(index: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Where a keyed permutation of range(size) takes each index.

    Args:
        index: int64 [N], 0 <= index < size.
        size: 1 <= size < 2**62.
        key: chooses the permutation; 0 <= key < 2**64.

    Raises:
        ValueError: an index outside range(size).
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"indices {index.min()} … {index.max()} are not all in [0, {size})")
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    result = _feistel(index.astype(np.uint64), rows, columns, key)
    while (outside := result >= size).any():  # walk the cycle until it re-enters: rows · columns − size < rows are out
        result[outside] = _feistel(result[outside], rows, columns, key)
    return result.astype(np.int64)


class SampleOrder:
    """The endless order of one domain's samples: epoch after epoch, each a permutation with a key of its own.

    Args:
        size: samples in an epoch, at least 1.
        seed, name: what the keys are made from, with the number of the epoch.
    """

    def __init__(self, size: int, seed: int, name: str):
        self.size = size
        self._seed, self._name = seed, name
        self._cached: tuple[int, int] = (-1, -1)
        self._chunk = np.empty(0, np.int64)

    def indices(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Indices of the samples number `first` … `first + count − 1` since the start of training, int64 [count]."""
        pieces = []
        while count > 0:
            epoch, place = divmod(first, self.size)
            offset = place % _CHUNK
            piece = self._chunk_of(epoch, place - offset)[offset : offset + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _chunk_of(self, epoch: int, start: int) -> npt.NDArray[np.int64]:
        if self._cached != (epoch, start):
            name = json.dumps([self._seed, self._name, epoch]).encode("ascii")
            key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
            places = np.arange(start, min(start + _CHUNK, self.size), dtype=np.int64)
            self._chunk, self._cached = permuted(places, self.size, key), (epoch, start)
        return self._chunk


def _feistel(index: npt.NDArray[np.uint64], rows: int, columns: int, key: int) -> npt.NDArray[np.uint64]:
    """A bijection of range(rows · columns). Each half-round adds a function of one half to the other."""
    left, right = np.divmod(index, np.uint64(columns))
    for round_key in range(key * 2 * _ROUNDS, (key + 1) * 2 * _ROUNDS, 2):
        left = (left + _mixed(right, round_key) % np.uint64(rows)) % np.uint64(rows)
        right = (right + _mixed(left, round_key + 1) % np.uint64(columns)) % np.uint64(columns)
    return left * np.uint64(columns) + right


def _mixed(values: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """splitmix64 (Steele, Lea & Flood 2014) of value and key: 64 well-mixed bits; arithmetic is modulo 2**64."""
    mixed = values + np.uint64((key * 0x9E3779B97F4A7C15) & _MASK)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
