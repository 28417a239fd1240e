"""Counts the costs of the AscendC kernels in the emulator: bytes, DMA launches, scalar operations, and their balance.

    python -m ascend_ops.emulator [--chip NAME …] [--json FILE]

× least   bytes of global memory over those of reading every input and writing every output once
uneven    of bytes, of scalar operations: the largest deviation of a core from the mean
DMA       launches of all cores, and those of CANN's own operators for 910B, which move rows one by one
scalar    operations of the scalar unit per token: single elements of the unified buffer, instructions that it issues;
          arithmetic in registers and branches are not counted
budget    nanoseconds per token on its core if the chip's memory moves the rows at its nominal bandwidth
CANN      bytes of CANN's own operators for 910B over ours: arithmetic from their sources, not measured; see `cann_cost`
          in each operator's emulation.py

Nothing here was measured on a device.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ascend_ops.emulator import CHIPS, Report, compile_operator
from ascend_ops.emulator.cases import DTYPES, Shape
from ascend_ops.emulator.kernels import Kernel, kernels
from ascend_ops.files import write_text
from ascend_ops.native import OperatorError

# nominal bandwidth of the chip's memory, bytes per second
BANDWIDTH = {"ascend910": 1.2e12, "ascend910b": 1.6e12, "ascend910_93": 1.6e12}
DTYPE = "float16"
ITEM_BYTES = DTYPES[DTYPE].itemsize
SEED = 0

SHAPES = (
    Shape(tokens=8192, hidden=2048, experts=16, slots=4, vocab_size=40_000, ranks=8),
    Shape(tokens=8192, hidden=4096, experts=16, slots=4, vocab_size=40_000, ranks=8),
    Shape(tokens=8192, hidden=5120, experts=16, slots=40, vocab_size=40_000, ranks=8),
    Shape(tokens=8192, hidden=2048, experts=64, slots=64, vocab_size=40_000),
    Shape(tokens=8192, hidden=2048, experts=16, slots=6, vocab_size=40_000, ranks=8, skew=0.7),
    Shape(tokens=8200, hidden=2048, experts=16, slots=1, vocab_size=40_000, skew=1.0),
)


@dataclass(frozen=True)
class Cost:
    """Cost of one kernel at one shape; bytes and launches are sums over all cores.

    `bytes_cann` and `dma_cann` are those of CANN's operators for 910B that do the same; None if there are none.
    """

    kernel: str
    chip: str
    shape: str
    cores: int
    bytes_moved: int
    bytes_least: int
    bytes_uneven: float
    dma: int
    scalar_per_token: float
    scalar_uneven: float
    budget_ns: float
    bytes_cann: int | None
    dma_cann: int | None


def costs(chip: str) -> Iterator[Cost]:
    """Yields the cost of every kernel at every shape. Each result is also compared with the reference."""
    for shape in SHAPES:
        for name, kernel in kernels().items():
            report = kernel.checks[0](compile_operator(name, chip), shape, DTYPE, SEED)
            yield _cost(kernel, chip, shape, report)


def _cost(kernel: Kernel, chip: str, shape: Shape, report: Report) -> Cost:
    cores = len(report.loads)
    bytes_least = kernel.least_bytes(shape, ITEM_BYTES, SEED)
    bytes_cann, dma_cann = kernel.cann_cost(shape, ITEM_BYTES) if kernel.cann_cost else (None, None)
    skew = f" skew {shape.skew:g}" if shape.skew else ""
    return Cost(
        kernel=kernel.name,
        chip=chip,
        shape=f"T{shape.tokens} H{shape.hidden} E{shape.experts} D{shape.slots} R{shape.ranks}{skew}",
        cores=cores,
        bytes_moved=int(report.bytes_moved.sum()),
        bytes_least=bytes_least,
        bytes_uneven=uneven(report.bytes_moved),
        dma=int(report.loads.sum() + report.stores.sum()),
        scalar_per_token=float(report.scalar_operations.sum() / shape.tokens),
        scalar_uneven=uneven(report.scalar_operations),
        budget_ns=1e9 * bytes_least / BANDWIDTH[chip] * cores / shape.tokens,
        bytes_cann=bytes_cann,
        dma_cann=dma_cann,
    )


def uneven(counts: np.ndarray) -> float:
    """Returns the largest deviation of a core from the mean, relative to the mean."""
    return float(np.abs(counts / counts.mean() - 1).max())


def table(rows: list[Cost]) -> str:
    """Formats one line per kernel."""
    head = ("kernel", "cores", "bytes", "× least", "uneven", "DMA", "CANN's", "scalar", "uneven", "budget", "CANN")
    lines = ["{:18}{:>6}{:>10}{:>9}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}".format(*head)]
    for each in rows:
        theirs = each.bytes_cann / each.bytes_moved if each.bytes_cann else None
        lines.append(
            f"{each.kernel:18}{each.cores:>6}{each.bytes_moved / 1e6:>7.1f} MB"
            f"{each.bytes_moved / each.bytes_least:>9.3f}{each.bytes_uneven:>8.1%}{each.dma:>8}"
            f"{each.dma_cann or '–':>8}{each.scalar_per_token:>8.1f}{each.scalar_uneven:>8.1%}"
            f"{each.budget_ns:>6.0f} ns{f'{theirs:.2f}' if theirs else '–':>7}"
        )
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chip",
        nargs="+",
        choices=CHIPS,
        default=["ascend910", "ascend910b"],
        metavar="NAME",
        help=f"Measure on these chips: {', '.join(CHIPS)} (default: the first two).",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the figures to this file as JSON.")
    arguments = parser.parse_args()
    found = []
    try:
        for chip in arguments.chip:
            rows = list(costs(chip))
            for shape in dict.fromkeys(each.shape for each in rows):
                print(f"\n{chip}, {shape}, {DTYPE}")
                print(table([each for each in rows if each.shape == shape]))
            found += rows
        if arguments.json:
            write_text(arguments.json, json.dumps([asdict(each) for each in found], indent=1) + "\n")
    except (OperatorError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
