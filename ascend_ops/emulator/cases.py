"""Building blocks of the operators' `emulation.py`: shapes, random inputs, and comparison bit by bit."""

from dataclasses import dataclass

import numpy as np

from ascend_ops.emulator.compiled import BFLOAT16, to_bfloat16

DTYPES: dict[str, np.dtype] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32), "bfloat16": BFLOAT16}


@dataclass(frozen=True)
class Shape:
    """The shape of one call, and how unevenly its rows are spread.

    Attributes:
        tokens: T.
        hidden: H.
        experts: E.
        slots: D.
        vocab_size: V.
        ranks: R, the ranks that hold the experts.
        skew: 0 spreads tokens over all ids, 1 gives all of them the same id. For blocks to regroup: the share of the
            rows in one block, and the share of the other blocks that are empty.
        cores: number of cores that the tiling may use; 0 for all of the chip.
    """

    tokens: int
    hidden: int
    experts: int = 16
    slots: int = 1
    vocab_size: int = 100
    ranks: int = 1
    skew: float = 0.0
    cores: int = 0


class WrongResult(AssertionError):
    """A kernel breaks no rule, but its result differs from the reference."""


def padded(array: np.ndarray, multiple: int, fill: int = 0) -> np.ndarray:
    """Pads the last axis to a multiple."""
    widths = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % multiple)]
    return np.pad(array, widths, constant_values=fill)


def random_rows(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    """Returns normally distributed rows [T, H] of a dtype in `DTYPES`."""
    values_TH = rng.standard_normal((shape.tokens, shape.hidden), np.float32)
    return to_bfloat16(values_TH) if dtype == "bfloat16" else values_TH.astype(DTYPES[dtype])


def expect(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raises WrongResult if a bit differs."""
    found_bytes = np.ascontiguousarray(found).view(np.uint8)
    expected_bytes = np.ascontiguousarray(expected).view(np.uint8)
    if not np.array_equal(found_bytes, expected_bytes):
        row = np.argwhere(found_bytes != expected_bytes)[0][0]
        raise WrongResult(f"{what} differ from the reference, first in entry {row}")
