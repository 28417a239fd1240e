"""The order of the samples: a keyed permutation that is computed instead of stored.

`permuted` is a Feistel network over Z_a × Z_b with a·b >= size (Black & Rogaway 2002, "Ciphers with Arbitrary Finite
Domains"). It computes any position of any epoch directly and stores nothing, so a loader's state is a few integers.
"""

import hashlib
import json
import math

import numpy as np
import numpy.typing as npt

_ROUNDS = 4  # each round changes both halves
_CHUNK = 1024  # indices computed at once, to amortise the cost of small NumPy calls
_MASK = (1 << 64) - 1


def permuted(index: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Maps each index through a keyed permutation of range(size).

    Args:
        index: int64 [number of indices], 0 <= index < size.
        size: 1 <= size < 2**62.
        key: selects the permutation; 0 <= key < 2**64.

    Raises:
        ValueError: an index is outside range(size).
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"indices {index.min()} … {index.max()} are not all in [0, {size})")
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    result = _feistel(index.astype(np.uint64), rows, columns, key)
    # Walk the cycle until it re-enters range(size). Fewer than `rows` values lie outside: rows · columns − size < rows.
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], rows, columns, key)
    return result.astype(np.int64)


class SampleOrder:
    """The endless order of one domain's samples: one epoch after another, each a permutation with its own key.

    Args:
        size: number of samples in an epoch, at least 1.
        seed, name: with the index of an epoch, they determine its key.
    """

    def __init__(self, size: int, seed: int, name: str) -> None:
        self.size = size
        self._seed = seed
        self._name = name
        self._cached: tuple[int, int] = (-1, -1)
        self._chunk = np.empty(0, np.int64)

    def indices(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Returns the samples at positions `first` … `first + count − 1` since the start of training, int64 [count]."""
        pieces = []
        while count > 0:
            epoch, position = divmod(first, self.size)
            offset = position % _CHUNK
            piece = self._chunk_of(epoch, position - offset)[offset : offset + count]
            pieces.append(piece)
            first += len(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _chunk_of(self, epoch: int, start: int) -> npt.NDArray[np.int64]:
        if self._cached != (epoch, start):
            name = json.dumps([self._seed, self._name, epoch]).encode("ascii")
            key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
            positions = np.arange(start, min(start + _CHUNK, self.size), dtype=np.int64)
            self._chunk = permuted(positions, self.size, key)
            self._cached = (epoch, start)
        return self._chunk


def _feistel(index: npt.NDArray[np.uint64], rows: int, columns: int, key: int) -> npt.NDArray[np.uint64]:
    """Applies a bijection on range(rows · columns). Each half-round adds a function of one half to the other."""
    left, right = np.divmod(index, np.uint64(columns))
    for round_key in range(key * 2 * _ROUNDS, (key + 1) * 2 * _ROUNDS, 2):
        left = (left + _mixed(right, round_key) % np.uint64(rows)) % np.uint64(rows)
        right = (right + _mixed(left, round_key + 1) % np.uint64(columns)) % np.uint64(columns)
    return left * np.uint64(columns) + right


def _mixed(values: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """Hashes values and key to 64 well-mixed bits with splitmix64 (Steele, Lea & Flood 2014), modulo 2**64."""
    mixed = values + np.uint64((key * 0x9E3779B97F4A7C15) & _MASK)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
